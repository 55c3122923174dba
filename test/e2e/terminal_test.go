package e2e

import (
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/gantryd/gantry/test/harness"
)

// terminal is a program on a terminal of the test's.
type terminal struct {
	t     *testing.T
	cmd   *exec.Cmd
	write func(string)
	size  func(cols, rows uint16)
	mu    sync.Mutex
	seen  strings.Builder
	ended chan error
}

// onTerminal runs gantry with args on a terminal of 80 columns and 24 rows.
func onTerminal(t *testing.T, m *harness.Machine, args ...string) *terminal {
	t.Helper()
	term := &terminal{t: t, cmd: m.Command(args...), ended: make(chan error, 1)}
	var err error
	m.NS.Do(func() {
		f, e := pty.StartWithSize(term.cmd, &pty.Winsize{Cols: 80, Rows: 24})
		if err = e; e != nil {
			return
		}
		t.Cleanup(func() { _ = f.Close() })
		term.write = func(s string) {
			if _, err := f.WriteString(s); err != nil {
				t.Errorf("type %q: %v", s, err)
			}
		}
		term.size = func(cols, rows uint16) { _ = pty.Setsize(f, &pty.Winsize{Cols: cols, Rows: rows}) }
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := f.Read(buf)
				term.mu.Lock()
				term.seen.Write(buf[:n])
				term.mu.Unlock()
				if err != nil {
					term.ended <- term.cmd.Wait()
					return
				}
			}
		}()
	})
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.seen.String()
}

// expect waits until what was shown since the last call contains want.
func (term *terminal) expect(want string) {
	term.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		term.mu.Lock()
		all := term.seen.String()
		i := strings.Index(all, want)
		if i >= 0 {
			term.seen.Reset()
			term.seen.WriteString(all[i+len(want):])
			term.mu.Unlock()
			return
		}
		term.mu.Unlock()
		if time.Now().After(end) {
			term.t.Fatalf("the terminal never showed %q; it shows %q", want, all)
		}
	}
}

// exit waits for the end and returns the code.
func (term *terminal) exit() int {
	term.t.Helper()
	select {
	case <-term.ended:
	case <-time.After(15 * time.Second):
		term.t.Fatalf("gantry does not end; the terminal shows %q", term.text())
	}
	return term.cmd.ProcessState.ExitCode()
}

// TestTerminal is a person at a shell: sizes, control keys, leaving and coming back.
func TestTerminal(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	term := onTerminal(t, m, "run", "-it", "--name", "c", "-e", "PS1=ready> ", image, "sh")
	term.expect("ready> ")
	term.write("stty size\r")
	term.expect("24 80")
	term.expect("ready> ")
	term.size(132, 50)
	term.write("sleep 0.2; stty size\r")
	term.expect("50 132")
	term.expect("ready> ")
	term.write("sleep 1000\r")
	time.Sleep(200 * time.Millisecond) // let it begin: what is tested is that ctrl-c ends it
	term.write("\x03")
	term.expect("ready> ")
	term.write("echo $?\r")
	term.expect("130")
	term.expect("ready> ")
	term.write("test -t 0 && test -t 2 && tty\r")
	term.expect("/dev/pts/0")
	term.expect("ready> ")
	term.write("\x10\x11") // ctrl-p ctrl-q
	if code := term.exit(); code != 0 {
		t.Errorf("detach: exit %d", code)
	}
	if out := m.Must("inspect", "-f", "{{.State.Status}}", "c"); out != "running" {
		t.Errorf("detached, and now %q", out)
	}
	m.Restart() // kill -9 of the daemon does not touch the shell
	term = onTerminal(t, m, "attach", "c")
	term.expect("/dev/pts/0") // the ring is replayed
	term.write("echo back $((6*7))\r")
	term.expect("back 42")
	term.write("stty size\r")
	term.expect("24 80") // of the terminal that is attached now
	term.size(90, 33)
	term.write("sleep 0.2; stty size\r")
	term.expect("33 90")
	term.write("exit 5\r")
	if code := term.exit(); code != 5 {
		t.Errorf("exit %d", code)
	}
}

// TestDetachKeys: run, attach and exec are left by the keys that are asked for, and by no others; what ran goes on.
func TestDetachKeys(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	leave := func(term *terminal, keys string) {
		t.Helper()
		term.expect("ready> ")
		term.write("\x10\x11echo still $((40+2))\r") // ctrl-p ctrl-q are the shell's now
		term.expect("still 42")
		term.expect("ready> ")
		term.write(keys)
		if code := term.exit(); code != 0 {
			t.Errorf("detach: exit %d", code)
		}
	}
	leave(onTerminal(t, m, "run", "-it", "--detach-keys", "ctrl-e,e", "--name", "c", "-e", "PS1=ready> ", image, "sh"), "\x05e")
	leave(onTerminal(t, m, "attach", "--detach-keys", "ctrl-x,q", "c"), "\x18q")
	leave(onTerminal(t, m, "exec", "-it", "--detach-keys", "ctrl-]", "-e", "PS1=ready> ", "c", "sh", "-c", "echo $$ > /left; exec sh"), "\x1d")
	m.Must("exec", "c", "sh", "-c", "kill -0 $(cat /left)") // the process of the exec runs without its terminal
	if out := m.Must("inspect", "-f", "{{.State.Status}}", "c"); out != "running" {
		t.Errorf("detached, and now %q", out)
	}
	m.Fails(125, "ctrl-", "run", "--detach-keys", "ctrl-", image, "true")
	m.Fails(2, "ctrl-", "attach", "--detach-keys", "ctrl-", "c")
	m.Fails(125, "ctrl-", "exec", "--detach-keys", "ctrl-", "c", "true")
}

// TestExecTerminal is a second shell in the same container.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	term := onTerminal(t, m, "exec", "-it", "-e", "PS1=ready> ", "-w", "/etc", "-u", "user", "c", "sh")
	term.expect("ready> ")
	term.write("pwd; id -un; stty size\r")
	term.expect("/etc")
	term.expect("user")
	term.expect("24 80")
	term.expect("ready> ")
	term.size(101, 41)
	term.write("sleep 0.2; stty size\r")
	term.expect("41 101")
	term.expect("ready> ")
	term.write("exit 9\r")
	if code := term.exit(); code != 9 {
		t.Errorf("exit %d", code)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"exec", "c", "true"}, 0, ""},
		{[]string{"exec", "c", "sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"exec", "c", "not-there"}, 127, "not-there"},
		{[]string{"exec", "c", "/etc/passwd"}, 126, "/etc/passwd"},
		{[]string{"exec", "gone", "true"}, 125, "gone"},
		{[]string{"exec", "-d", "c", "touch", "/made"}, 0, ""},
		{[]string{"exec", "c", "sh", "-c", "grep -c a80425fb /proc/self/status; grep Seccomp: /proc/self/status"}, 0, "Seccomp:\t2"},
	} {
		m.Fails(c.code, c.want, c.args...)
	}
	harness.Eventually(t, 5*time.Second, "the detached exec did its work", func() bool { return m.Try("exec", "c", "test", "-e", "/made").Code == 0 })
}
