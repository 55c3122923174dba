#include "textflag.h"

// The init of --init, position-independent and without a stack of its own: it runs as process 1 from
// an ELF file of one page (init.go), with every signal blocked, beside process 2, which was its first child.
TEXT ·initCode(SB), NOSPLIT|NOFRAME, $0-0
	LEAQ -512(SP), R12           // 0: the set of all signals, 8: a status
	MOVQ $-1, AX
	MOVQ AX, 0(R12)
loop:
	MOVQ $128, AX                // rt_sigtimedwait(&set, 0, 0, 8)
	MOVQ R12, DI
	XORQ SI, SI
	XORQ DX, DX
	MOVQ $8, R10
	SYSCALL
	TESTQ AX, AX
	JLE  loop
	CMPQ AX, $17                 // SIGCHLD
	JEQ  reap
	MOVQ AX, SI                  // kill(2, signal)
	MOVQ $2, DI
	MOVQ $62, AX
	SYSCALL
	JMP  loop
reap:
	MOVQ $61, AX                 // wait4(-1, &status, WNOHANG, 0)
	MOVQ $-1, DI
	LEAQ 8(R12), SI
	MOVQ $1, DX
	XORQ R10, R10
	SYSCALL
	TESTQ AX, AX
	JLE  loop
	CMPQ AX, $2
	JNE  reap
	MOVL 8(R12), DI
	MOVL DI, SI
	ANDL $0x7f, SI
	JNE  signaled
	SHRL $8, DI
	ANDL $0xff, DI
	JMP  leave
signaled:
	LEAQ 128(SI), DI
leave:
	MOVQ $231, AX                // exit_group
	SYSCALL
	INT  $3
	QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0
	QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0
	QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0
	QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0; QUAD $0

// func initAddr() unsafe.Pointer
TEXT ·initAddr(SB), NOSPLIT, $0-8
	LEAQ ·initCode(SB), AX
	MOVQ AX, ret+0(FP)
	RET
