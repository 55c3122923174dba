package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// maxBoot bounds what the daemon says on stdin, in bytes.
const maxBoot = 1 << 20

// errUnused ends a shim that was started ahead and is not needed.
var errUnused = errors.New("boot: nothing")

// readBoot reads the one message that a shim is told. That may take a while: it may have been started ahead.
func readBoot(r io.Reader) (*shimv1.Boot, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxBoot+1))
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	if len(raw) == 0 {
		return nil, errUnused
	}
	if len(raw) > maxBoot {
		return nil, fmt.Errorf("boot: more than %d bytes: %w", maxBoot, errdefs.ErrInvalidArgument)
	}
	b := &shimv1.Boot{}
	if err := b.UnmarshalVT(raw); err != nil { // what a newer daemon says besides, it does not need
		return nil, fmt.Errorf("boot: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case b.GetProtocol() != protocol:
		return nil, fmt.Errorf("boot: protocol %d; this shim speaks %d: %w", b.GetProtocol(), protocol, errdefs.ErrNotImplemented)
	case b.GetContainerId() == "" || b.GetStateDir() == "" || b.GetDir() == "":
		return nil, fmt.Errorf("boot: no container id, or no directory: %w", errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// moveIn makes the container's state directory the working directory, and shim.log in it what is said.
func moveIn(state string) error {
	if err := os.Chdir(state); err != nil {
		return err
	}
	f, err := os.OpenFile(bundle.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()                     //nolint:errcheck // its copy stays
	return unix.Dup3(int(f.Fd()), 2, 0) //nolint:gosec // a descriptor
}

// settle makes the process one that nobody's end is the end of, and that nobody's signal ends.
func settle() error {
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
		if _, err := unix.Setsid(); err != nil {
			return fmt.Errorf("session: %w", err)
		}
	}
	// Orphans of the container are its shim's to reap.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	// It is executed by descriptor, and would be called by its number.
	_ = os.WriteFile("/proc/self/comm", []byte("gantry-shim"), 0)
	unix.Umask(0o022)
	return nil
}

// deafen catches the signals that end processes. They are caught, not ignored: what is ignored
// stays ignored in the container. Only Shutdown ends a shim.
func (s *shim) deafen() {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGPIPE)
	for sig := range ch {
		s.log.Info("a signal is of no use here: end the container instead", "signal", sig.String())
	}
}

// sockets are what a shim is reached by.
type sockets struct{ control, io *net.UnixListener }

// listen binds both sockets in the working directory, whose whole path may be too long for one.
func listen() (*sockets, error) {
	c, err := bind(bundle.SocketFile)
	if err != nil {
		return nil, err
	}
	i, err := bind(bundle.IOFile)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &sockets{c, i}, nil
}

func bind(name string) (*net.UnixListener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, os.Chmod(name, 0o600)
}

// introduce writes shim.json. run is the one that begins; 0: none yet.
func (s *shim) introduce(run uint64) error {
	boot, err := bundle.BootID()
	if err != nil {
		return err
	}
	started, err := bundle.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	return bundle.WriteShim(s.dir, bundle.Shim{
		Protocol: protocol, Container: s.boot.GetContainerId(), Nonce: s.nonce, BootID: boot, PID: os.Getpid(), Started: started, Run: run,
	})
}

// newNonce is random. It asks the kernel itself: crypto/rand would bring more than it.
func newNonce() string {
	b := make([]byte, 16)
	for n := 0; n < len(b); {
		m, err := unix.Getrandom(b[n:], 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			panic("getrandom: " + err.Error()) // not since Linux 3.17
		}
		n += max(m, 0)
	}
	return hex.EncodeToString(b)
}

// answer prints the one message that a shim says, and lets go of stdin and stdout.
func answer(b *shimv1.Booted) error {
	raw, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("booted: %w", err)
	}
	if _, err := os.Stdout.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("booted: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close() //nolint:errcheck // its copies stay
	for fd := range 2 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil { //nolint:gosec // a descriptor
			return err
		}
	}
	return nil
}
