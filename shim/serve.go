package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/internal/sentence"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/spec"
)

// protocol is the version of the contract that this shim speaks.
const protocol = 1

// capabilities are what this shim can do beyond the first version of the contract.
var capabilities = []string{"restart", "pause", "update", "stats", "policy"}

// service is the contract over a shim.
type service struct{ s *shim }

var _ shimv1.ShimService = service{}

func (v service) Hello(context.Context, *shimv1.HelloRequest) (*shimv1.HelloResponse, error) {
	return &shimv1.HelloResponse{Protocol: protocol, ContainerId: v.s.boot.GetContainerId(), Nonce: v.s.nonce, Capabilities: capabilities}, nil
}

func (v service) Create(ctx context.Context, _ *shimv1.CreateRequest) (*shimv1.CreateResponse, error) {
	if err := v.s.begun.wait(ctx); err != nil {
		return nil, err
	}
	pid, err := v.s.create(ctx)
	return &shimv1.CreateResponse{Pid: uint32(pid), Warnings: v.s.warned()}, err //nolint:gosec // a pid
}

func (v service) Start(ctx context.Context, req *shimv1.StartRequest) (*shimv1.StartResponse, error) {
	p, err := v.s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	var pid int
	if p == v.s.init {
		pid, err = v.s.start(ctx)
	} else {
		pid, err = v.s.startExec(ctx, p)
	}
	return &shimv1.StartResponse{Pid: uint32(pid)}, err //nolint:gosec // a pid
}

func (v service) Exec(ctx context.Context, req *shimv1.ExecRequest) (*shimv1.ExecResponse, error) {
	return &shimv1.ExecResponse{}, v.s.exec(ctx, req)
}

func (v service) State(ctx context.Context, req *shimv1.StateRequest) (*shimv1.StateResponse, error) {
	for {
		r, old := v.s.state()
		if r.GetChange() != req.GetSeen() {
			return r, nil
		}
		select {
		case <-old:
		case <-v.s.leaving:
			return nil, errLeaving
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

var errLeaving = fmt.Errorf("the shim was told to end: %w", errdefs.ErrUnavailable)

func (v service) Wait(ctx context.Context, req *shimv1.WaitRequest) (*shimv1.WaitResponse, error) {
	p, err := v.s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return &shimv1.WaitResponse{Exit: p.ended()}, nil
	case <-v.s.leaving:
		return nil, errLeaving
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (v service) Kill(ctx context.Context, req *shimv1.KillRequest) (*shimv1.KillResponse, error) {
	sig := unix.Signal(req.GetSignal())
	if sig > 64 {
		return nil, fmt.Errorf("there is no signal %d: %w", sig, errdefs.ErrInvalidArgument)
	}
	p, err := v.s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if p != v.s.init {
		return &shimv1.KillResponse{}, p.signal(sig)
	}
	return &shimv1.KillResponse{}, v.s.kill(ctx, sig, req.GetAll(), req.GetLast())
}

func (v service) Pause(ctx context.Context, _ *shimv1.PauseRequest) (*shimv1.PauseResponse, error) {
	return &shimv1.PauseResponse{}, v.s.freeze(ctx, shimv1.Phase_PHASE_RUNNING, shimv1.Phase_PHASE_PAUSED, runtime.Container.Pause)
}

func (v service) Resume(ctx context.Context, _ *shimv1.ResumeRequest) (*shimv1.ResumeResponse, error) {
	return &shimv1.ResumeResponse{}, v.s.freeze(ctx, shimv1.Phase_PHASE_PAUSED, shimv1.Phase_PHASE_RUNNING, runtime.Container.Resume)
}

func (v service) Update(ctx context.Context, req *shimv1.UpdateRequest) (*shimv1.UpdateResponse, error) {
	if raw := req.GetResources(); len(raw) > 0 {
		r, err := spec.Resources(raw)
		if err != nil {
			return nil, fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := v.s.limit(ctx, r); err != nil {
			return nil, err
		}
	}
	if p := req.GetRestart(); p != nil {
		v.s.policy(p)
	}
	return &shimv1.UpdateResponse{}, nil
}

// limit changes the bounds of the run under way. Between two runs there is nothing to change: the next
// one reads config.json, which has the new ones.
func (s *shim) limit(ctx context.Context, r *specs.LinuxResources) error {
	s.op.Lock() // a run that is being made has read config.json, or has not
	defer s.op.Unlock()
	if s.phaseNow() == shimv1.Phase_PHASE_WAITING {
		return nil
	}
	c, err := s.alive()
	if err != nil {
		return err
	}
	return c.Update(ctx, r)
}

// policy is for exits from now on.
func (s *shim) policy(p *shimv1.Restart) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boot.Restart = p
}

// alive returns the container, if there is something in it.
func (s *shim) alive() (runtime.Container, error) {
	switch s.phaseNow() {
	case shimv1.Phase_PHASE_CREATED, shimv1.Phase_PHASE_RUNNING, shimv1.Phase_PHASE_PAUSED:
		return s.made()
	default:
		return nil, fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	}
}

func (v service) Resize(_ context.Context, req *shimv1.ResizeRequest) (*shimv1.ResizeResponse, error) {
	p, err := v.s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	cols, rows, err := terminalSize(req.GetSize())
	if err != nil {
		return nil, err
	}
	return &shimv1.ResizeResponse{}, p.resize(cols, rows)
}

func terminalSize(z *typesv1.TerminalSize) (cols, rows uint16, err error) {
	if z.GetColumns() > 1<<16-1 || z.GetRows() > 1<<16-1 {
		return 0, 0, fmt.Errorf("a terminal of %d by %d: %w", z.GetColumns(), z.GetRows(), errdefs.ErrInvalidArgument)
	}
	return uint16(z.GetColumns()), uint16(z.GetRows()), nil //nolint:gosec // looked at
}

func (v service) Stats(ctx context.Context, _ *shimv1.StatsRequest) (*shimv1.StatsResponse, error) {
	c, err := v.s.alive()
	if err != nil {
		return nil, err
	}
	st, err := c.Stats(ctx)
	if err != nil {
		return nil, err
	}
	return &shimv1.StatsResponse{CpuUsageUsec: st.CPUUsec, MemoryBytes: st.MemoryBytes, Pids: st.PIDs}, nil
}

func (v service) Delete(ctx context.Context, req *shimv1.DeleteRequest) (*shimv1.DeleteResponse, error) {
	p, err := v.s.find(req.GetProcess())
	if err != nil {
		return nil, err
	}
	var x *typesv1.Exit
	if p == v.s.init {
		x, err = v.s.remove(ctx)
	} else {
		x, err = v.s.removeExec(p)
	}
	return &shimv1.DeleteResponse{Exit: x}, err
}

func (v service) Shutdown(context.Context, *shimv1.ShutdownRequest) (*shimv1.ShutdownResponse, error) {
	switch v.s.phaseNow() {
	case shimv1.Phase_PHASE_EMPTY, shimv1.Phase_PHASE_EXITED:
	default:
		return nil, fmt.Errorf("the container runs: %w", errdefs.ErrFailedPrecondition)
	}
	v.s.ending()
	return &shimv1.ShutdownResponse{}, nil
}

// server serves the contract on shim.sock.
type server struct {
	t        *ttrpc.Server
	begun    atomic.Int64 // calls
	answered atomic.Int64 // of them
	ending   atomic.Bool  // no answer is waited for but those to calls that were begun
	last     func()       // called once they are out
}

// lastTime is how long the last answers may take to be taken: callers may have gone.
const lastTime = time.Second

func newServer(s *shim) (*server, error) {
	v := &server{last: sync.OnceFunc(func() { close(s.end) })}
	t, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(func(ctx context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, m ttrpc.Method) (_ any, err error) {
		v.begun.Add(1)
		defer func() {
			if r := recover(); r != nil { // one bad call must not take the container with it
				s.log.Error("a call panicked", "method", info.FullMethod, "panic", r, "stack", string(debug.Stack()))
				err = fmt.Errorf("the shim made a mistake, and has written it to shim.log: %w", errdefs.ErrInternal)
			}
			err = wire(err)
		}()
		answer, err := m(ctx, func(v any) error { return u(lean{m: v.(fast)}) }) //nolint:forcetypeassert // every message of ours is
		if err != nil {
			return nil, err
		}
		return lean{m: answer.(fast)}, nil //nolint:forcetypeassert // every message of ours is
	}))
	if err != nil {
		return nil, fmt.Errorf("ttrpc: %w", err)
	}
	v.t = t
	s.ending = sync.OnceFunc(func() {
		v.ending.Store(true)
		close(s.leaving) // who waits for news gets an answer as well
		time.AfterFunc(lastTime, v.last)
	})
	shimv1.RegisterShimService(t, service{s})
	return v, nil
}

// serve answers until the server is closed.
func (v *server) serve(l net.Listener) error {
	err := v.t.Serve(context.Background(), conns{l, v})
	if errors.Is(err, ttrpc.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

type conns struct {
	net.Listener
	v *server
}

func (c conns) Accept() (net.Conn, error) {
	n, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &answers{Conn: n, v: c.v}, nil
}

// answers notices when the last answer is out: then the shim may end, and not before.
type answers struct {
	net.Conn
	v    *server
	left int // bytes of an answer that are not written yet; ttrpc writes one after the other
}

// headerSize is that of a ttrpc message, which begins with its payload's length.
const headerSize = 10

func (a *answers) Write(p []byte) (int, error) {
	n, err := a.Conn.Write(p)
	for rest := p[:n]; len(rest) > 0; {
		if a.left == 0 {
			if len(rest) < headerSize {
				break // ttrpc writes a header as a whole
			}
			a.left = headerSize + int(binary.BigEndian.Uint32(rest))
		}
		part := min(a.left, len(rest))
		rest = rest[part:]
		if a.left -= part; a.left == 0 && a.v.answered.Add(1) >= a.v.begun.Load() && a.v.ending.Load() {
			a.v.last()
		}
	}
	return n, err
}

// ours lets in only those who have the shim's own user id, which is root's.
type ours struct {
	*net.UnixListener
	log *slog.Logger
}

func (o ours) Accept() (net.Conn, error) {
	for {
		c, err := o.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(c)
		if err == nil && (uid == os.Geteuid() || insecure.Without(insecure.Peer)) {
			return c, nil
		}
		o.log.Warn("a stranger was turned away", "uid", uid, "err", err)
		_ = c.Close()
	}
}

func peer(c *net.UnixConn) (uid int, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil { //nolint:gosec // a descriptor
		return -1, err
	}
	if cerr != nil {
		return -1, cerr
	}
	return int(cred.Uid), nil
}

// code is an error's class as a status code, or Unknown. Contexts come first: what was cut short has
// often failed with another class on the way out.
func code(err error) codes.Code {
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errdefs.IsInvalidArgument(err):
		return codes.InvalidArgument
	case errdefs.IsNotFound(err):
		return codes.NotFound
	case errdefs.IsAlreadyExists(err):
		return codes.AlreadyExists
	case errdefs.IsPermissionDenied(err):
		return codes.PermissionDenied
	case errdefs.IsResourceExhausted(err):
		return codes.ResourceExhausted
	case errdefs.IsFailedPrecondition(err):
		return codes.FailedPrecondition
	case errdefs.IsAborted(err):
		return codes.Aborted
	case errdefs.IsNotImplemented(err):
		return codes.Unimplemented
	case errdefs.IsUnavailable(err):
		return codes.Unavailable
	case errdefs.IsDataLoss(err):
		return codes.DataLoss
	case errdefs.IsInternal(err):
		return codes.Internal
	}
	return codes.Unknown
}

// wire is an error as it goes over the wire. One without a class is Internal.
func wire(err error) error {
	if err == nil {
		return nil
	}
	c := code(err)
	if c == codes.Unknown {
		c = codes.Internal
	}
	return status.Error(c, sentence.Of(err))
}
