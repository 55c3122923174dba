package plain

import (
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// InitName is argv[0] of the small init. The shim's main calls InitMain first thing when it has that name.
const InitName = "gantry-init"

// initPath is where it is in a container: in /dev, which is ours and not the image's.
const initPath = "/dev/init"

// bindInit shows the shim's own program, read-only, to the container as its init.
func (b *builder) bindInit() error {
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make init: %w", err)
	}
	defer unix.Close(self) //nolint:errcheck // O_PATH
	mnt, _, err := bindAt(self, "gantry-init", options{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV})
	if err != nil {
		return fmt.Errorf("make init: %w", err)
	}
	if err := b.t.attach(mnt, initPath, false); err != nil {
		return fmt.Errorf("make init: %w", err)
	}
	return nil
}

// unforwarded are the signals that are the init's own: its children's ends, and Go's.
var unforwarded = map[os.Signal]bool{unix.SIGCHLD: true, unix.SIGURG: true, unix.SIGPIPE: true}

// InitMain is process 1 of a container with --init: it starts the command (argv is the name, the
// path, and the command's own argv), passes signals on, reaps whatever is orphaned, and ends as the
// command ends. It returns the exit code.
func InitMain(argv []string) int {
	if len(argv) < 3 {
		fmt.Fprintln(os.Stderr, InitName+": no command")
		return 125
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	// The command is a group of its own, and the terminal's foreground: ctrl-c is for it alone.
	attr := &unix.SysProcAttr{Setpgid: true}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Foreground, attr.Ctty = true, 0
	}
	p, err := os.StartProcess(argv[1], argv[2:], &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: attr})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: exec %s: %v\n", InitName, argv[2], errors.Unwrap(err))
		if errors.Is(err, unix.ENOENT) {
			return 127
		}
		return 126
	}
	for s := range signals {
		if s != unix.SIGCHLD {
			if !unforwarded[s] {
				_ = p.Signal(s)
			}
			continue
		}
		for {
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if pid != p.Pid || !ws.Exited() && !ws.Signaled() {
				continue
			}
			if ws.Signaled() {
				return 128 + int(ws.Signal())
			}
			return ws.ExitStatus()
		}
	}
	return 0
}
