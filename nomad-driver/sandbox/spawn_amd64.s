#include "textflag.h"

// func cloneOnto(args *cloneArgs, size uintptr, s *forkSpec, child uintptr) (pid uintptr, errno syscall.Errno)
//
// The child begins on a stack of its own, with nothing on it, and returns nowhere. child is a Go function's own entry: by its name the
// assembler would find a wrapper, which the race detector counts, for a thread that the runtime does not know.
TEXT ·cloneOnto(SB),NOSPLIT,$0-48
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	s+16(FP), R12 // which the kernel keeps, as it does R13
	MOVQ	child+24(FP), R13
	MOVQ	$435, AX // clone3
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	CMPQ	AX, $0xfffffffffffff001
	JCC	failed
	MOVQ	AX, pid+32(FP)
	MOVQ	$0, errno+40(FP)
	RET
failed:
	NEGQ	AX
	MOVQ	$0, pid+32(FP)
	MOVQ	AX, errno+40(FP)
	RET
child:
	XORL	BP, BP
	XORL	R14, R14 // no goroutine
	XORPS	X15, X15 // zero, as Go code expects it
	MOVQ	R12, AX  // its argument
	CALL	R13
	INT	$3
