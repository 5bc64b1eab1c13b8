// Package seccomp compiles system call policies into BPF programs for seccomp(2), on the host: PID 1 of a sandbox only loads
// the bytes.
//
// It owns the two policies of SoulBox ("default" and "strict") and a small compiler for them. It never installs a filter.
// The numbers are those of x86-64; entering the kernel by another ABI (i386, x32) kills the process, since the same number
// means another call there.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// verdict is a SECCOMP_RET_* value with its data.
type verdict uint32

const (
	allow verdict = unix.SECCOMP_RET_ALLOW
	kill  verdict = unix.SECCOMP_RET_KILL_PROCESS
)

func fail(errno unix.Errno) verdict { return verdict(unix.SECCOMP_RET_ERRNO | uint32(errno)) }

// rule is what a system call gets: the verdict of the first test that holds, else otherwise.
type rule struct {
	tests     []test
	otherwise verdict
}

// test looks at the low 32 bits of one argument: those are all that the kernel reads of the arguments that policies look at.
type test struct {
	arg  int    // 0..5
	mask uint32 // 0: all bits
	want uint32 // holds where arg & mask == want
	also *test  // holds only where this one does too
	then verdict
}

func (r rule) equal(s rule) bool {
	// Rules with tests are told apart: no two calls share a block of tests, which keeps the tree simple.
	return len(r.tests) == 0 && len(s.tests) == 0 && r.otherwise == s.otherwise
}

// policy maps system call numbers to rules; what is not in it gets otherwise.
type policy struct {
	rules     map[uint32]rule
	otherwise verdict
}

// span is a run of numbers with the same rule, from first to the next span's first.
type span struct {
	first uint32
	rule  rule
}

func (p policy) spans() []span {
	var numbers []uint32
	for n := range p.rules {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	other := rule{otherwise: p.otherwise}
	out := []span{{0, other}}
	add := func(first uint32, r rule) {
		last := &out[len(out)-1]
		switch {
		case last.rule.equal(r):
		case last.first == first:
			last.rule = r
			if n := len(out); n > 1 && out[n-2].rule.equal(r) {
				out = out[:n-1]
			}
		default:
			out = append(out, span{first, r})
		}
	}
	for _, n := range numbers {
		add(n, p.rules[n])
		add(n+1, other)
	}
	return out
}

// Offsets in struct seccomp_data.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16

	x32Bit = 0x40000000
)

const (
	opLoad  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	opEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opGE    = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	opAnd   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opJump  = unix.BPF_JMP | unix.BPF_JA
	opRet   = unix.BPF_RET | unix.BPF_K
)

// compile turns a policy into a program: checks of the ABI, then a balanced tree over the spans, so that a call costs
// about log2 of their number in comparisons.
func (p policy) compile() ([]unix.SockFilter, error) {
	prog := []unix.SockFilter{
		{Code: opLoad, K: offsetArch},
		{Code: opEqual, Jt: 1, K: unix.AUDIT_ARCH_X86_64},
		{Code: opRet, K: uint32(kill)},
		{Code: opLoad, K: offsetNr},
		{Code: opGE, Jf: 1, K: x32Bit},
		{Code: opRet, K: uint32(kill)},
	}
	prog = append(prog, tree(p.spans())...)
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("compile seccomp policy: %d instructions, at most %d", len(prog), unix.BPF_MAXINSNS)
	}
	return prog, nil
}

func tree(s []span) []unix.SockFilter {
	if len(s) == 1 {
		return s[0].rule.block()
	}
	mid := len(s) / 2
	left, right := tree(s[:mid]), tree(s[mid:])
	var out []unix.SockFilter
	if len(left) <= 255 {
		out = append(out, unix.SockFilter{Code: opGE, Jt: uint8(len(left)), K: s[mid].first})
	} else {
		// A conditional jump reaches 255 instructions, an unconditional one any number.
		out = append(out,
			unix.SockFilter{Code: opGE, Jf: 1, K: s[mid].first},
			unix.SockFilter{Code: opJump, K: uint32(len(left))})
	}
	return append(append(out, left...), right...)
}

func (r rule) block() []unix.SockFilter {
	var out []unix.SockFilter
	for _, t := range r.tests {
		out = append(out, t.block()...)
	}
	return append(out, unix.SockFilter{Code: opRet, K: uint32(r.otherwise)})
}

// block returns the verdict where the test holds and goes on behind itself where it does not.
func (t test) block() []unix.SockFilter {
	var rest []unix.SockFilter
	if t.also != nil {
		inner := *t.also
		inner.then = t.then
		rest = inner.block()
	} else {
		rest = []unix.SockFilter{{Code: opRet, K: uint32(t.then)}}
	}
	out := []unix.SockFilter{{Code: opLoad, K: uint32(offsetArgs + 8*t.arg)}}
	if t.mask != 0 {
		out = append(out, unix.SockFilter{Code: opAnd, K: t.mask})
	}
	out = append(out, unix.SockFilter{Code: opEqual, Jf: uint8(len(rest)), K: t.want})
	return append(out, rest...)
}

// encode returns the program as sock_filter records in the machine's byte order.
func encode(prog []unix.SockFilter) []byte {
	var b []byte
	for _, f := range prog {
		b = binary.NativeEndian.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = binary.NativeEndian.AppendUint32(b, f.K)
	}
	return b
}
