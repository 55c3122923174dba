package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/plugins"
)

// permanentError marks what starting again does not mend: the wrong program, the wrong contract, the wrong options.
type permanentError struct{ error }

func permanent(err error) error { return permanentError{err} }

func isPermanent(err error) bool {
	_, ok := errors.AsType[permanentError](err)
	return ok
}

// Unwrap keeps the class.
func (e permanentError) Unwrap() error { return e.error }

const (
	envSocketDir  = plugin.EnvUnixSocketDir
	pathVar       = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	longestSocket = 107 // bytes of the path of a unix socket (unix(7))
	socketName    = len("/plugin4294967295")
	configureTime = 6 // times Limits.Start: a driver may have to mend what a crash left
	firstLine     = 200
)

// dirs are a plugin's directories.
type dirs struct{ root, state, own, log string }

func (s *supervised) dirs() dirs {
	state := filepath.Join(s.host.o.State, "plugins", string(s.id.Family)+"."+s.id.Name)
	return dirs{
		root:  filepath.Join(s.host.o.Root, "plugins", string(s.id.Family), s.id.Name),
		state: state,
		own:   filepath.Join(state, "own"), // what Config.State names: not among our files
		log:   filepath.Join(state, "log"),
	}
}

// make makes them, and sweeps sockets of processes that died without doing it.
func (d dirs) make() error {
	if n := len(d.state) + socketName; n > longestSocket {
		return fmt.Errorf("%s is too long for the path of a socket, by %d bytes: %w", d.state, n-longestSocket, errdefs.ErrInvalidArgument)
	}
	for _, p := range []string{d.root, d.state, d.own} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(p, 0o700); err != nil { //nolint:gosec // a directory
			return err
		}
	}
	old, err := filepath.Glob(filepath.Join(d.state, "plugin*"))
	for _, p := range old {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}

// launch executes the plugin, shakes hands, and asks who it is.
func (s *supervised) launch(ctx context.Context) (*process, error) {
	program, err := s.host.find(s.id)
	if err != nil {
		return nil, permanent(fmt.Errorf("launch: %w", err))
	}
	x, err := openExecutable(program.Path, s.host.o.Config[s.id].SHA256)
	if err != nil {
		return nil, permanent(fmt.Errorf("launch: %w", err))
	}
	defer func() { _ = x.Close() }()
	d := s.dirs()
	if err := d.make(); err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	p, err := s.execute(ctx, program, x, d)
	if err != nil {
		return nil, err
	}
	err = s.introduce(ctx, p)
	if err == nil {
		err = s.configure(ctx, p, d)
	}
	if err == nil {
		fault.Point("plugins.host.launched")
		err = s.remember(p, x)
	}
	if err != nil {
		if errdefs.IsUnavailable(err) && p.isDeadSoon() {
			err = fmt.Errorf("launch: the plugin died: %s", p.lastWords())
		}
		p.kill()
		p.bury()
		return nil, err
	}
	return p, nil
}

// execute starts the process and waits for the handshake.
func (s *supervised) execute(ctx context.Context, program Program, x *executable, d dirs) (*process, error) {
	if err := cut(d.log, s.host.o.Limits.Log); err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	stderr, err := os.OpenFile(d.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	defer func() { _ = stderr.Close() }()
	from, err := stderr.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("launch: %w", err)
	}
	r := &running{
		program: program, x: x, dir: d.state, stderr: stderr,
		process: &process{log: d.log, logFrom: from, dead: make(chan struct{}), startedAt: time.Now()},
	}
	c := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugins.Handshake,
		VersionedPlugins: map[int]plugin.PluginSet{plugins.Protocol: {}, plugins.Oldest: {}},
		RunnerFunc:       r.prepare,
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: d.state},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout:     s.host.o.Limits.Start,
		SkipHostEnv:      true,
		Logger:           hclog.NewNullLogger(),
	})
	stop := context.AfterFunc(ctx, func() { _ = r.Kill(ctx) })
	addr, err := c.Start()
	stop()
	if r.pid == 0 {
		err = fmt.Errorf("launch: execute %s: %w", program.Path, err)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOMEM) {
			return nil, err
		}
		return nil, permanent(err)
	}
	r.hush()
	s.host.logs.watch(d.log)
	if err == nil {
		err = r.reachable(addr, d)
	}
	if err != nil {
		err = r.explain(err, s.host.o.Limits.Start)
		r.kill()
		r.bury()
		return nil, fmt.Errorf("shake hands: %w", err)
	}
	r.protocol = c.NegotiatedVersion()
	return r.process, nil
}

// introduce connects to p and hears who it is.
func (s *supervised) introduce(ctx context.Context, p *process) error {
	conn, err := grpc.NewClient("passthrough:///"+s.id.String(),
		grpc.WithTransportCredentials(plugins.PeerCredentials(func(peer plugins.Peer) error {
			if peer.PID != p.pid {
				return fmt.Errorf("the socket is served by process %d, not by %d that was started for it", peer.PID, p.pid)
			}
			return nil
		})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
		}),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	p.conn = conn
	ctx, cancel := context.WithTimeoutCause(ctx, s.host.o.Limits.Start, errLimit)
	defer cancel()
	p.info, err = plugins.NewClient(conn, s.host.o.Version).Info(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("info: no answer within %s: %w", s.host.o.Limits.Start, err)
	case errdefs.IsNotImplemented(err):
		return permanent(fmt.Errorf("info: it is no gantry plugin: %w", err))
	case err != nil:
		return fmt.Errorf("info: %w", err)
	case p.info.Family != s.id.Family || p.info.Name != s.id.Name:
		return permanent(fmt.Errorf("info: it says it is %.60q, not %s", ID{p.info.Family, p.info.Name}, s.id))
	}
	return nil
}

// configure gives p its directories and options. What it can do may depend on them, so it is asked again.
func (s *supervised) configure(ctx context.Context, p *process, d dirs) error {
	ctx, cancel := context.WithTimeoutCause(ctx, configureTime*s.host.o.Limits.Start, errLimit)
	defer cancel()
	c := plugins.NewClient(p.conn, s.host.o.Version)
	err := c.Configure(ctx, plugins.Config{Root: d.root, State: d.own, Options: s.host.o.Config[s.id].Options})
	switch {
	case errdefs.IsInvalidArgument(err):
		return permanent(fmt.Errorf("configure: %w", err))
	case err != nil:
		return fmt.Errorf("configure: %w", err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return fmt.Errorf("info: %w", err)
	}
	p.info.Capabilities, p.info.Version = info.Capabilities, info.Version
	return nil
}

// running is a process being started, in go-plugin's words (runner.Runner).
type running struct {
	*process
	program Program
	x       *executable
	dir     string
	stderr  *os.File
	spec    *exec.Cmd // what go-plugin wants in the environment
	out     *handoff
}

// prepare takes go-plugin's environment. Its directory for sockets is not used: ours is checked, and named alike every time.
func (r *running) prepare(_ hclog.Logger, cmd *exec.Cmd, tmp string) (runner.Runner, error) {
	r.spec = cmd
	return r, os.Remove(tmp)
}

// Start executes the descriptor that was checked.
func (r *running) Start(context.Context) error {
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, outR.Close(), outW.Close())
	}
	env := slices.DeleteFunc(slices.Clone(r.spec.Env), func(kv string) bool { return strings.HasPrefix(kv, envSocketDir+"=") })
	pidfd := -1
	r.cmd = &exec.Cmd{
		Path:       "/proc/self/fd/" + strconv.Itoa(int(r.x.Fd())),
		Args:       append([]string{r.program.Path}, r.program.Args...),
		Env:        append(env, pathVar, envSocketDir+"="+r.dir),
		Dir:        "/",
		Stdout:     outW,
		Stderr:     r.stderr,
		ExtraFiles: []*os.File{lifeR}, // plugins.Lifeline
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, // no terminal, and a group of its own to kill
			PidFD:  &pidfd,
		},
	}
	if r.x.script { // its interpreter opens it by number, after exec has closed what closes
		r.cmd.ExtraFiles = append(r.cmd.ExtraFiles, r.x.File)
		r.cmd.Path = "/proc/self/fd/" + strconv.Itoa(plugins.Lifeline+1)
	}
	err = r.cmd.Start()
	err = errors.Join(err, outW.Close(), lifeR.Close())
	if err != nil {
		return errors.Join(err, outR.Close(), lifeW.Close())
	}
	r.pid, r.lifeline = r.cmd.Process.Pid, lifeW
	r.out = newHandoff(outR)
	if err := unix.SetNonblock(pidfd, true); err != nil { // for the poller
		return err
	}
	r.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	r.started, err = startTime(r.pid)
	go func() {
		r.watchDeath()
		r.out.close() // others may hold the other end
	}()
	return err
}

// reachable says whether addr is where a plugin may listen.
func (r *running) reachable(addr net.Addr, d dirs) error {
	if addr.Network() != "unix" || filepath.Dir(filepath.Clean(addr.String())) != d.state {
		return permanent(fmt.Errorf("it listens on %s %.100q, not in %s", addr.Network(), addr.String(), d.state))
	}
	r.socket = filepath.Clean(addr.String())
	return nil
}

// explain says what went wrong with a handshake, better than go-plugin can, which does not know what we do.
func (r *running) explain(err error, limit time.Duration) error {
	if isPermanent(err) {
		return err
	}
	line, whole := r.out.first()
	parts := strings.Split(line, "|")
	switch {
	case !whole && time.Since(r.startedAt) >= limit:
		return fmt.Errorf("no handshake within %s", limit)
	case line == "" && r.isDeadSoon():
		return fmt.Errorf("the plugin died: %s", r.lastWords())
	case !whole || len(parts) < 5 || parts[0] != strconv.Itoa(plugin.CoreProtocolVersion):
		return permanent(fmt.Errorf("it is no gantry plugin: its first line is %.80q", line))
	case parts[1] != strconv.Itoa(plugins.Protocol) && parts[1] != strconv.Itoa(plugins.Oldest):
		return permanent(fmt.Errorf("it speaks version %.20q of the driver contract, this daemon %d and %d", parts[1], plugins.Protocol, plugins.Oldest))
	}
	return permanent(errors.New(oneLine(err.Error())))
}

// hush ends go-plugin's reading; what comes later is read and dropped.
func (r *running) hush() { r.out.detach() }

// The rest of runner.Runner.

// Stdout is where the handshake comes from.
func (r *running) Stdout() io.ReadCloser { return r.out.reader }

// Stderr is empty: it goes to a file.
func (r *running) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name names the program.
func (r *running) Name() string { return r.program.Path }

// ID is the pid.
func (r *running) ID() string { return strconv.Itoa(r.pid) }

// Diagnose has nothing to add; explain does that.
func (r *running) Diagnose(context.Context) string { return "" }

// Wait waits for the end.
func (r *running) Wait(context.Context) error {
	<-r.dead
	return nil
}

// Kill ends it.
func (r *running) Kill(context.Context) error {
	if r.pidfd != nil {
		r.kill()
	}
	return nil
}

// PluginToHost is the identity: there is one host.
func (r *running) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

// HostToPlugin is the identity too.
func (r *running) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// handoff reads standard output: for go-plugin until the handshake is over, and then for nobody, so that a plugin that
// prints does not hang.
type handoff struct {
	pipe   *os.File
	reader *io.PipeReader
	writer *io.PipeWriter

	mu    sync.Mutex
	begin []byte // of what it said
}

func newHandoff(pipe *os.File) *handoff {
	h := &handoff{pipe: pipe}
	h.reader, h.writer = io.Pipe()
	go h.pump()
	return h
}

func (h *handoff) pump() {
	buf := make([]byte, 4<<10)
	for {
		n, err := h.pipe.Read(buf)
		h.mu.Lock()
		if room := firstLine - len(h.begin); room > 0 {
			h.begin = append(h.begin, buf[:min(n, room)]...)
		}
		h.mu.Unlock()
		_, _ = h.writer.Write(buf[:n]) // fails at once after detach
		if err != nil {
			_ = h.writer.Close()
			_ = h.pipe.Close()
			return
		}
	}
}

// first is the first line so far, and whether it is whole.
func (h *handoff) first() (line string, whole bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	line, _, whole = strings.Cut(string(h.begin), "\n")
	return strings.TrimSpace(line), whole
}

func (h *handoff) detach() { _ = h.reader.Close() }

// close ends pump, once what is in the pipe has been read.
func (h *handoff) close() {
	_ = h.pipe.SetReadDeadline(time.Now().Add(graceForDeath / 5))
}
