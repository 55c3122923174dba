package native

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tellsListener is what a child says when its filter is loaded, whose listener is its first free
// descriptor. It goes on at once: a call that waits for the listener's answer must find it listening.
const tellsListener = -6

// listening is whom calls are told to that the profile has told (SCMP_ACT_NOTIFY).
type listening struct {
	path, metadata string
}

// listener is what profile says about it, nil if no call is told.
func listener(program []unix.SockFilter, profile *specs.LinuxSeccomp) (*listening, error) {
	if !slices.ContainsFunc(program, func(i unix.SockFilter) bool {
		return i.Code == unix.BPF_RET|unix.BPF_K && i.K == unix.SECCOMP_RET_USER_NOTIF
	}) {
		return nil, nil //nolint:nilnil // there need not be one
	}
	if profile == nil || profile.ListenerPath == "" {
		return nil, invalid("linux.seccomp.listenerPath: the profile has calls told (%s), and it names nobody", specs.ActNotify)
	}
	if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(profile.ListenerPath) > most {
		return nil, invalid("linux.seccomp.listenerPath %q: a socket's path has at most %d bytes", profile.ListenerPath, most)
	}
	return &listening{profile.ListenerPath, profile.ListenerMetadata}, nil
}

// hear has the parent hand a process's listener on, when the process has told that it is there.
func (c *container) hear(p *process, status specs.ContainerState) {
	if p.listen == nil {
		return
	}
	l := *p.listen
	p.heard = func(_ context.Context, at child) error {
		if err := c.handOn(l, at, status); err != nil {
			return fmt.Errorf("tell the listener of linux.seccomp at %s: %w", l.path, err)
		}
		return nil
	}
}

func (c *container) handOn(l listening, p child, status specs.ContainerState) error {
	fd, err := unix.PidfdGetfd(p.pidfd, firstKept, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the other end has a copy
	// No such notification: but that there are any shows what it is.
	id := uint64(0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_ID_VALID, uintptr(unsafe.Pointer(&id))); errno != unix.ENOENT {
		return fmt.Errorf("descriptor %d of the process is no listener: %w", firstKept, errdefs.ErrInternal)
	}
	state := c.state
	state.Status, state.Pid = status, p.pid
	if c.init != nil {
		state.Pid = c.init.child.pid
	}
	raw, err := processJSON(specs.ContainerProcessState{
		Version: state.Version, Fds: []string{specs.SeccompFdName}, Pid: p.pid, Metadata: l.metadata, State: state,
	})
	if err != nil {
		return err
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock) //nolint:errcheck // what was sent was sent
	// Whoever does not take it does not keep a container from being refused.
	_ = unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 10})
	if err := unix.Connect(sock, &unix.SockaddrUnix{Name: l.path}); err != nil {
		return err
	}
	n, err := unix.SendmsgN(sock, raw, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
	if err == nil && n != len(raw) {
		err = errors.New("it took a part only")
	}
	return err
}
