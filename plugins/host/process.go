package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
)

const (
	endGrace   = 4 * time.Second // from the lifeline's end to SIGKILL; plugins/serve needs 2.5 s at most
	killGrace  = 5 * time.Second // from SIGKILL to giving up
	tailBytes  = 8 << 10         // of the log, to find last words in
	wordsLimit = 300             // of last words, in bytes
)

// process is one plugin process, ours or found again.
type process struct {
	pid       int
	started   uint64 // clock ticks since boot
	pidfd     *os.File
	socket    string
	protocol  int
	info      plugins.Info
	conn      *grpc.ClientConn
	startedAt time.Time

	cmd      *exec.Cmd // nil for one found again: it is nobody's child
	lifeline *os.File  // its end is the plugin's; nil for one found again
	log      string    // path
	logFrom  int64     // where in it this process's words begin

	draining sync.WaitGroup // until the connection is closed, or deaf is called
	deaf     func()         // nil until it is drained

	dead chan struct{} // closed when it has ended
	exit string        // how; to be read after dead

	mu     sync.Mutex
	reaped bool // its pid may be somebody else's now
}

// watchDeath closes dead when the process has ended. Run it in a goroutine of its own.
func (p *process) watchDeath() {
	defer close(p.dead)
	p.exit = "it ended"
	err := waitReadable(p.pidfd)
	if p.cmd == nil {
		if err != nil {
			p.exit = "it is not watched any more"
		}
		return
	}
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	_ = p.cmd.Wait() // takes no time, unless nothing could end it and we have given up
	p.exit = p.cmd.ProcessState.String()
}

// waitReadable waits until a pidfd is readable, which is when its process has ended (pidfd_open(2)), without
// keeping a thread.
func waitReadable(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// isDeadSoon gives a process whose connection or output has ended the time to end too.
func (p *process) isDeadSoon() bool { return p.deadWithin(graceForDeath) }

func (p *process) deadWithin(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.dead:
		return true
	case <-t.C:
		return false
	}
}

// signal signals this process and no other: the descriptor names it for ever.
func (p *process) signal(sig unix.Signal) {
	raw, err := p.pidfd.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
}

// kill ends the process and, where it is our child, the group that it leads, at once. What waits for a
// device cannot be killed; we do not wait for it for ever.
func (p *process) kill() {
	p.mu.Lock()
	if p.cmd != nil && !p.reaped { // the pid is its own until it is reaped
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
	p.mu.Unlock()
	p.signal(unix.SIGKILL)
	p.deadWithin(killGrace)
}

// end asks the process to go, and makes it.
func (p *process) end() {
	p.stopDraining() // or its server would wait for that stream to end
	if p.lifeline != nil {
		_ = p.lifeline.Close()
	}
	p.signal(unix.SIGTERM) // for those that know no lifeline
	if !p.deadWithin(endGrace) {
		p.kill()
	}
	p.bury()
}

// leave lets go of a process that will outlive us.
func (p *process) leave() { p.hangUp() }

// stopDraining ends the draining.
func (p *process) stopDraining() {
	if p.deaf != nil {
		p.deaf()
	}
	p.draining.Wait()
}

// hangUp ends what connects us.
func (p *process) hangUp() {
	p.stopDraining()
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.lifeline != nil {
		_ = p.lifeline.Close()
	}
}

// bury drops what belonged to a dead process.
func (p *process) bury() {
	p.hangUp()
	_ = p.pidfd.Close()
	if p.socket != "" {
		_ = os.Remove(p.socket)
	}
}

// lastWords say how a dead process ended, and what it last wrote.
func (p *process) lastWords() string {
	<-p.dead
	if w := wordsIn(tail(p.log, p.logFrom)); w != "" {
		return p.exit + ": " + w
	}
	return p.exit
}

// tail reads the end of a file, at most back to from; a file shorter than that was truncated meanwhile.
func tail(path string, from int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil
	}
	if from > st.Size() {
		from = 0
	}
	from = max(from, st.Size()-tailBytes)
	b, err := io.ReadAll(io.NewSectionReader(f, from, st.Size()-from))
	if err != nil {
		return nil
	}
	return b
}

// wordsIn finds what a log says of the end: the panic, if there is one, or else the last line that is no everyday one.
func wordsIn(log []byte) string {
	last := ""
	for line := range bytes.Lines(log) {
		l := strings.TrimSpace(string(line))
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			return oneLine(l)
		}
		if w := entryOf(l); w != "" {
			last = w
		}
	}
	return oneLine(last)
}

// entryOf is what a line of a log says: an error that slog wrote as JSON, or any line that it did not write.
func entryOf(line string) string {
	var e struct{ Level, Msg, Err string }
	switch {
	case !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &e) != nil || e.Msg == "":
		return line
	case e.Level != "" && e.Level != "ERROR":
		return ""
	case e.Err != "":
		return e.Msg + ": " + e.Err
	}
	return e.Msg
}

// oneLine makes a line for people of what a plugin said, which may be anything.
func oneLine(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) > wordsLimit {
		s = strings.ToValidUTF8(s[:wordsLimit], "") + "…"
	}
	return s
}

// startTime is when a process was started, in clock ticks since boot (proc_pid_stat(5), field 22).
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	i := bytes.LastIndexByte(raw, ')') // the name before it may hold anything
	fields := strings.Fields(string(raw[i+1:]))
	const at = 22 - 3
	if i < 0 || len(fields) <= at {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[at], 10, 64)
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
