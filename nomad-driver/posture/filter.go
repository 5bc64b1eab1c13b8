package posture

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// verdicts returns what a compiled seccomp program may answer to each number from 0 to last, whatever the arguments are.
// It reads the bytes that PID 1 loads, not the policy that they were made from.
func verdicts(program []byte, last uint32) (map[uint32][]uint32, error) {
	insns, err := decode(program)
	if err != nil {
		return nil, err
	}
	out := make(map[uint32][]uint32, last+1)
	for nr := range last + 1 {
		w := walk{insns: insns, nr: nr}
		if err := w.from(0, 0, true); err != nil {
			return nil, fmt.Errorf("call %d: %w", nr, err)
		}
		slices.Sort(w.found)
		out[nr] = slices.Compact(w.found)
	}
	return out, nil
}

func decode(program []byte) ([]unix.SockFilter, error) {
	if len(program)%8 != 0 || len(program) == 0 {
		return nil, fmt.Errorf("a filter of %d bytes is none", len(program))
	}
	insns := make([]unix.SockFilter, len(program)/8)
	for i := range insns {
		p := program[i*8:]
		insns[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(p), Jt: p[2], Jf: p[3], K: binary.NativeEndian.Uint32(p[4:])}
	}
	return insns, nil
}

// walk follows a program for one number. Where it compares an argument, which is not known, both ways are followed.
type walk struct {
	insns []unix.SockFilter
	nr    uint32
	args  *[6]uint32 // the low halves, where they are known: no policy of ours looks at the others
	steps int
	seen  map[int]bool // where it has been with an unknown value: the ways through a list of tests meet again and again
	found []uint32
}

// ask returns what a program answers to one call with these arguments.
func ask(program []byte, nr uint32, args ...uint32) (string, error) {
	insns, err := decode(program)
	if err != nil {
		return "", err
	}
	w := walk{insns: insns, nr: nr, args: new([6]uint32)}
	copy(w.args[:], args)
	if err := w.from(0, 0, true); err != nil {
		return "", err
	}
	return word(w.found[0]), nil
}

// Offsets in struct seccomp_data.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// maxSteps bounds a walk over a program that is not ours.
const maxSteps = 1 << 16

func (w *walk) from(pc int, acc uint32, known bool) error {
	for {
		if w.steps++; pc >= len(w.insns) || w.steps > maxSteps {
			return fmt.Errorf("the program does not end")
		}
		f := w.insns[pc]
		pc++
		var holds bool
		switch f.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			switch f.K {
			case offsetNr:
				acc, known = w.nr, true
			case offsetArch:
				acc, known = unix.AUDIT_ARCH_X86_64, true
			default:
				if known = w.args != nil && f.K >= offsetArgs && f.K%8 == 0 && f.K < offsetArgs+48; known {
					acc = w.args[(f.K-offsetArgs)/8]
				}
			}
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= f.K
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(f.K)
			continue
		case unix.BPF_RET | unix.BPF_K:
			w.found = append(w.found, f.K)
			return nil
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			holds = acc == f.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			holds = acc >= f.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			holds = acc > f.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			holds = acc&f.K != 0
		default:
			return fmt.Errorf("instruction %#x is not understood", f.Code)
		}
		if !known {
			if w.seen[pc] {
				return nil
			}
			if w.seen == nil {
				w.seen = map[int]bool{}
			}
			w.seen[pc] = true
			if err := w.from(pc+int(f.Jt), acc, false); err != nil {
				return err
			}
			holds = false
		}
		if holds {
			pc += int(f.Jt)
		} else {
			pc += int(f.Jf)
		}
	}
}

// word says what a verdict means.
func word(v uint32) string {
	switch v & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW:
		return Allowed
	case unix.SECCOMP_RET_ERRNO:
		return unix.ErrnoName(unix.Errno(v & unix.SECCOMP_RET_DATA))
	case unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_KILL_THREAD:
		return "killed"
	}
	return fmt.Sprintf("%#x", v)
}
