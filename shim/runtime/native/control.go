package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is the parent's end of the socket to a child.
type control struct {
	f  *os.File
	rc syscall.RawConn
}

// low is below every descriptor that a child still needs when it puts its last ones in order.
const low = 16

// newControl makes the socket; the second result is the child's end, to be closed after the clone.
func newControl() (*control, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("make socket: %w", err)
	}
	theirs, err := unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, low)
	_ = unix.Close(fds[1])
	if err == nil {
		err = unix.SetNonblock(fds[0], true)
	}
	if err != nil {
		_ = unix.Close(fds[0])
		return nil, -1, fmt.Errorf("make socket: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "control")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, -1, fmt.Errorf("make socket: %w", err)
	}
	return &control{f, rc}, theirs, nil
}

// next is the child's next record; io.EOF: its end is closed, which exec does. fd is a descriptor
// that came with it, or -1.
func (c *control) next(ctx context.Context) (rec record, fd int, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rec, fd, err = c.read()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return rec, fd, err
}

// read is next for a child that cannot take long.
func (c *control) read() (rec record, fd int, err error) {
	fd = -1
	var oob [32]byte
	var n, oobn int
	var rerr error
	err = c.rc.Read(func(s uintptr) bool {
		for {
			n, oobn, _, _, rerr = unix.Recvmsg(int(s), unsafe.Slice((*byte)(unsafe.Pointer(&rec)), recordSize), oob[:], unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(rerr, unix.EINTR) {
				return !errors.Is(rerr, unix.EAGAIN)
			}
		}
	})
	switch {
	case err != nil:
		return rec, fd, err
	case errors.Is(rerr, unix.ECONNRESET) || rerr == nil && n == 0:
		return rec, fd, io.EOF
	case rerr != nil:
		return rec, fd, rerr
	case n != recordSize:
		return rec, fd, fmt.Errorf("%d bytes from the child", n)
	}
	if oobn > 0 {
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				fd = fds[0]
			}
		}
	}
	return rec, fd, nil
}

// proceed lets the child go on.
func (c *control) proceed() error {
	_, err := c.f.Write([]byte{1})
	return err
}

func (c *control) close() { _ = c.f.Close() }
