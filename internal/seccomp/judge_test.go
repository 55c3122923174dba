package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestJudge: it answers as the interpreter of the tests does, and kills what is no program.
func TestJudge(t *testing.T) {
	b, _, err := Default(docker)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		nr   uintptr
		args []uint64
		want bool
	}{
		{unix.SYS_SENDMSG, nil, true},
		{unix.SYS_CLONE, []uint64{unix.CLONE_PARENT | unix.CLONE_PIDFD}, true},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, false},
		{unix.SYS_CLONE3, nil, false},
		{unix.SYS_KEYCTL, nil, false},
		{unix.SYS_SOCKET, []uint64{unix.AF_VSOCK}, false},
		{unix.SYS_SOCKET, []uint64{unix.AF_INET}, true},
	} {
		if got := Judge(p, c.nr, c.args...) == unix.SECCOMP_RET_ALLOW; got != c.want {
			t.Errorf("call %d with %x: allowed %v", c.nr, c.args, got)
		}
		d := data{nr: uint32(c.nr), arch: callOf(0, nil)[dataArch/4]}
		copy(d.args[:], c.args)
		if got, want := Judge(p, c.nr, c.args...), run(p, d); got != want {
			t.Errorf("call %d with %x: %#x, want %#x", c.nr, c.args, got, want)
		}
	}
	for _, p := range [][]unix.SockFilter{nil, {{Code: load, K: 64}}, {{Code: load, K: 2}}, {{Code: jump, K: 9}}, {{Code: 0xffff}}, {{Code: load}}} {
		if got := Judge(p, 0); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("%v: %#x", p, got)
		}
	}
}
