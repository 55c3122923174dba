package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// console is a socket that the program hands a terminal's controlling side to.
type console struct {
	path string // as the program is told it, in its working directory: a long one has no place in an address
	file string
	fd   int
}

// newConsole listens in dir.
func newConsole(dir, name string) (_ *console, err error) {
	c := &console{path: name, file: filepath.Join(dir, name), fd: -1}
	defer func() {
		if err != nil {
			c.close()
			err = fmt.Errorf("make console socket: %w", err)
		}
	}()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at) //nolint:errcheck // O_PATH
	if c.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, err
	}
	if err = unix.Bind(c.fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(at) + "/" + c.path}); err != nil {
		return nil, err
	}
	return c, unix.Listen(c.fd, 1)
}

func (c *console) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
	_ = os.Remove(c.file)
}

// receive is the terminal of user's, after the program has ended: what it sent waits in the socket.
func (c *console) receive(user uint32, size *specs.Box) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("receive terminal: %w", err)
		}
	}()
	conn, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("the runtime sent none: %w", errdefs.ErrInternal)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(conn) //nolint:errcheck // it has told all
	name, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	_, n, _, _, err := unix.Recvmsg(conn, name, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	fds, err := descriptors(rights[:n])
	if err != nil {
		return nil, err
	}
	fd := fds[0]
	for _, other := range fds[1:] {
		_ = unix.Close(other)
	}
	if _, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	give(fd, user)
	if size != nil {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(min(size.Height, 65535)), Col: uint16(min(size.Width, 65535))}) //nolint:gosec // bounded
	}
	return os.NewFile(uintptr(fd), "terminal"), nil //nolint:gosec // a descriptor
}

// give makes the other side the user's, who may want to open it again: crun leaves what is added to a
// container with root's. That of a sandbox is not this kernel's, and stays as it is.
func give(fd int, user uint32) {
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC) //nolint:gosec // a descriptor
	if errno != 0 {
		return
	}
	_ = unix.Fchown(int(peer), int(user), -1) //nolint:gosec // a descriptor
	_ = unix.Close(int(peer))                 //nolint:gosec // likewise
}

// descriptors are those of a control message, one at least.
func descriptors(rights []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	if len(fds) == 0 {
		return nil, fmt.Errorf("the runtime sent no descriptor: %w", errdefs.ErrInternal)
	}
	return fds, nil
}
