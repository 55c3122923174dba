#include "textflag.h"

// The init of --init: see init_amd64.s.
TEXT ·initCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R12                // 0: the set of all signals, 8: a status
	SUB  $512, R12, R12
	MOVD $-1, R9
	MOVD R9, 0(R12)
loop:
	MOVD $137, R8                // rt_sigtimedwait(&set, 0, 0, 8)
	MOVD R12, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	CMP  $0, R0
	BLE  loop
	CMP  $17, R0                 // SIGCHLD
	BEQ  reap
	MOVD R0, R1                  // kill(2, signal)
	MOVD $2, R0
	MOVD $129, R8
	SVC
	B    loop
reap:
	MOVD $260, R8                // wait4(-1, &status, WNOHANG, 0)
	MOVD $-1, R0
	ADD  $8, R12, R1
	MOVD $1, R2
	MOVD $0, R3
	SVC
	CMP  $0, R0
	BLE  loop
	CMP  $2, R0
	BNE  reap
	MOVWU 8(R12), R0
	AND  $0x7f, R0, R1
	CBNZ R1, signaled
	LSR  $8, R0, R0
	AND  $0xff, R0, R0
	B    leave
signaled:
	ADD  $128, R1, R0
leave:
	MOVD $94, R8                 // exit_group
	SVC
	BRK
	WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0
	WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0
	WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0
	WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0; WORD $0

// func initAddr() unsafe.Pointer
TEXT ·initAddr(SB), NOSPLIT, $0-8
	MOVD $·initCode(SB), R0
	MOVD R0, ret+0(FP)
	RET
