package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

func instance(root string) string {
	sum := sha256.Sum256([]byte(root))
	return "gantry-" + hex.EncodeToString(sum[:4])
}

// Start starts the daemon and waits until it answers.
func (m *Machine) Start() {
	m.T.Helper()
	m.Launch()
	Eventually(m.T, 30*time.Second, "the daemon answers", func() bool {
		select {
		case err := <-m.ended:
			m.ended <- err
			m.T.Fatalf("gantryd ended at once: %v\n%s", err, tail(m.LogPath(), 50))
		default:
		}
		return m.Try("info").Code == 0
	})
}

// Launch starts the daemon and does not wait for it to answer.
func (m *Machine) Launch() {
	m.T.Helper()
	log, err := os.OpenFile(m.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.T.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"--config", "/etc/gantry/gantryd.toml", "--root", m.Root, "--state", m.State}, append(m.level, m.flags...)...)
	cmd := exec.Command(filepath.Join(m.Bin, "gantryd"), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), m.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	m.NS.Do(func() { err = cmd.Start() })
	if err != nil {
		m.T.Fatal(err)
	}
	m.daemon, m.ended = cmd, make(chan error, 1)
	go func(ended chan error) { ended <- cmd.Wait() }(m.ended)
}

// Pid is the daemon's.
func (m *Machine) Pid() int { return m.daemon.Process.Pid }

// Kill ends the daemon with SIGKILL: nothing it meant to do still happens.
func (m *Machine) Kill() {
	m.T.Helper()
	_ = m.daemon.Process.Kill()
	<-m.ended
	m.daemon = nil
}

// Gone waits for a daemon that ends by itself.
func (m *Machine) Gone(limit time.Duration) {
	m.T.Helper()
	select {
	case <-m.ended:
		m.daemon = nil
	case <-time.After(limit):
		m.T.Fatalf("the daemon did not end within %v", limit)
	}
}

// Dead reports whether a daemon that was started has ended.
func (m *Machine) Dead() bool {
	select {
	case err := <-m.ended:
		m.ended <- err
		return true
	default:
		return false
	}
}

// SetEnv replaces what the daemon's environment has beside the test's own, from its next start.
func (m *Machine) SetEnv(vars ...string) { m.env = vars }

// Report logs the last words of the daemon.
func (m *Machine) Report() { m.T.Logf("daemon log:\n%s", tail(m.LogPath(), 120)) }

// Stop asks the daemon to end, as systemd does.
func (m *Machine) Stop() {
	m.T.Helper()
	_ = m.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-m.ended:
		if err != nil {
			m.T.Errorf("gantryd: %v", err)
		}
	case <-time.After(30 * time.Second):
		m.T.Errorf("gantryd did not end within 30 s of SIGTERM")
		_ = m.daemon.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		time.Sleep(time.Second)
		_ = m.daemon.Process.Kill()
		<-m.ended
	}
	m.daemon = nil
}

// Halt ends a daemon that may be dying of SIGKILL by its own hand, and reports whether it did.
func (m *Machine) Halt() (killed bool) {
	m.T.Helper()
	_ = m.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-m.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			ws, ok := exit.Sys().(syscall.WaitStatus)
			killed = ok && ws.Signal() == syscall.SIGKILL
		}
		if err != nil && !killed {
			m.T.Errorf("gantryd: %v", err)
		}
	case <-time.After(30 * time.Second):
		m.T.Errorf("gantryd did not end within 30 s of SIGTERM")
		_ = m.daemon.Process.Kill()
		<-m.ended
	}
	m.daemon = nil
	return killed
}

// Restart kills the daemon with SIGKILL and starts another.
func (m *Machine) Restart() {
	m.T.Helper()
	m.Kill()
	m.Start()
}
