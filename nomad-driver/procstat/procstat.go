// Package procstat reads /proc/PID/stat, proc_pid_stat(5).
//
// It owns the reading of that one line, whose second field is the process's to choose. It never keeps anything, and says nothing of a process but what that
// line says.
package procstat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// Stat is what a line says.
type Stat struct {
	State   byte   // 'R', 'S', 'D', 'Z' …
	Session int    // process id of its leader; 0: that is in an outer pid namespace
	Start   uint64 // when it started, in clock ticks since boot: with the id it names a process for as long as the machine runs
}

// Ended reports whether nothing of it runs any more: it waits to be reaped, or is being.
func (s Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' }

// Started is Start as text, as it is in records.
func (s Stat) Started() string { return strconv.FormatUint(s.Start, 10) }

// Of reads that of a process. Where there is none the error is fs.ErrNotExist or unix.ESRCH.
func Of(pid int) (Stat, error) { return read("/proc/" + strconv.Itoa(pid) + "/stat") }

// OfThread reads that of one thread of a process.
func OfThread(pid, tid int) (Stat, error) {
	return read("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(tid) + "/stat")
}

func read(path string) (Stat, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Stat{}, err
	}
	s, err := parse(b)
	if err != nil {
		return Stat{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Fields behind the command, from 0 on.
const (
	fieldState   = 0
	fieldSession = 3
	fieldStart   = 19
)

// parse reads a line. A process that calls itself "a) Z 1 2" is no zombie: only what follows the last ')' counts, since no field there has one.
func parse(line []byte) (s Stat, err error) {
	i := bytes.LastIndexByte(line, ')')
	if i < 0 {
		return s, errors.New("process stat line without a command")
	}
	f := bytes.Fields(line[i+1:])
	if len(f) <= fieldStart || len(f[fieldState]) != 1 {
		return s, fmt.Errorf("process stat line with %d fields after the command, want %d", len(f), fieldStart+1)
	}
	s.State = f[fieldState][0]
	if s.Session, err = strconv.Atoi(string(f[fieldSession])); err != nil {
		return s, fmt.Errorf("session of a process: %w", err)
	}
	if s.Start, err = strconv.ParseUint(string(f[fieldStart]), 10, 64); err != nil {
		return s, fmt.Errorf("start of a process: %w", err)
	}
	return s, nil
}
