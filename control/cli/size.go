package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
)

// sizeFlags are the limits of a sandbox as flags. What was not given is nil.
type sizeFlags struct {
	cpu                *float64
	memory, disk, pids *int64
	storage            api.StorageLimits
	lift               bool // limits of io may be lifted
}

func (f *sizeFlags) add(o *options) {
	o.Func("cpu", "<cores>", "Limit of processor time in cores, such as 0.5 or 2.", nil, func(s string) error {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 {
			return fmt.Errorf("%.40q is not a number of cores greater than zero", s)
		}
		f.cpu = &v
		return nil
	})
	mebibytes := func(name, help string, to **int64) {
		o.Func(name, "<size>", help, nil, func(s string) error {
			n, err := parseMebibytes(s)
			*to = &n
			return err
		})
	}
	mebibytes("memory", "Limit of memory: a number of MiB, or with a unit, as in 512MiB or 2GiB.", &f.memory)
	mebibytes("disk", "Limit of what it writes outside /tmp, as a size. A node that cannot hold it refuses the sandbox.", &f.disk)
	number := func(name, help string, to **int64) {
		o.Func(name, "<number>", help, nil, func(s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < 1 {
				return fmt.Errorf("%.40q is not a whole number greater than zero", s)
			}
			*to = &n
			return nil
		})
	}
	number("disk-inodes", "Limit of files that it makes outside /tmp.", &f.storage.DiskInodes)
	number("pids", "Limit of processes and threads.", &f.pids)
	rate := func(name, help string, to **int64, parse func(string) (int64, error)) {
		if f.lift {
			help += " none lifts it."
		}
		o.Func(name, "<rate>", help, nil, func(s string) error {
			if f.lift && s == "none" {
				*to = ptr(int64(api.Unlimited))
				return nil
			}
			n, err := parse(s)
			*to = &n
			return err
		})
	}
	rate("io-read", "Limit of reading from the disk: MiB a second, or with a unit.", &f.storage.IOReadBytes, parseRate)
	rate("io-write", "Limit of writing to the disk, likewise.", &f.storage.IOWriteBytes, parseRate)
	rate("io-read-ops", "Limit of reads a second.", &f.storage.IOReadOps, parseOps)
	rate("io-write-ops", "Limit of writes a second.", &f.storage.IOWriteOps, parseOps)
}

// parseRate reads bytes a second, as a size.
func parseRate(s string) (int64, error) {
	n, err := parseMebibytes(s)
	if err == nil && n > math.MaxInt64>>20 {
		return 0, fmt.Errorf("%.40q is too large", s)
	}
	return n << 20, err
}

func parseOps(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%.40q is not a whole number greater than zero", s)
	}
	return n, nil
}

// parseMebibytes reads a size: a number of MiB, or a number with a unit of 1024.
func parseMebibytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKmMgGtTiIbB")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%.40q is not a size such as 512, 512MiB or 2GiB", s)
	}
	var factor int64
	switch strings.ToLower(s[len(digits):]) {
	case "", "m", "mb", "mib":
		factor = 1
	case "g", "gb", "gib":
		factor = 1 << 10
	case "t", "tb", "tib":
		factor = 1 << 20
	default:
		return 0, fmt.Errorf("%.40q: the unit must be MiB, GiB or TiB", s)
	}
	if n > math.MaxInt64/factor>>20 {
		return 0, fmt.Errorf("%.40q is too large", s)
	}
	return n * factor, nil
}

func ptr[T any](v T) *T { return &v }
