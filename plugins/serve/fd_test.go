package serve

import (
	"testing"

	"golang.org/x/sys/unix"
)

func dupOf(t *testing.T, fd int) int {
	t.Helper()
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// restore gives standard output back.
func restore(t *testing.T, fd int) {
	t.Helper()
	if err := unix.Dup3(fd, 1, 0); err != nil {
		t.Error(err)
	}
	_ = unix.Close(fd)
}

func writeTo(t *testing.T, fd int, s string) {
	t.Helper()
	if _, err := unix.Write(fd, []byte(s)); err != nil {
		t.Error(err)
	}
}
