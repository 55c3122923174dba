package serve

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/plugins"
)

// driverMethods is what all methods of drivers begin with, and pluginMethods what those do that work before Configure.
const (
	driverMethods = "/gantry.driver.v1."
	pluginMethods = driverMethods + "PluginService/"
)

// served is a plugin being served.
type served struct {
	plugin *once
	stderr *os.File
	grpc   atomic.Pointer[grpc.Server]
	quiet  sync.Once
	idle   *time.Timer // gives memory back; set before the first call
}

// server makes the gRPC server; go-plugin calls it, once.
func (s *served) server(opts []grpc.ServerOption) *grpc.Server {
	s.idle = time.AfterFunc(idleAfter, debug.FreeOSMemory)
	us := uint32(os.Geteuid()) //nolint:gosec // a uid
	g := grpc.NewServer(append(opts,
		grpc.Creds(plugins.PeerCredentials(func(p plugins.Peer) error {
			if p.UID != 0 && p.UID != us {
				return fmt.Errorf("user %d may not talk to this plugin", p.UID)
			}
			return nil
		})),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))...)
	s.grpc.Store(g)
	return g
}

// before is what happens before every call.
func (s *served) before(method string) error {
	s.quiet.Do(s.hush)
	if strings.HasPrefix(method, driverMethods) && !strings.HasPrefix(method, pluginMethods) && !s.plugin.configured.Load() {
		return status.Error(codes.FailedPrecondition, "the plugin has not been configured")
	}
	return nil
}

// hush takes standard output from go-plugin, which keeps what is printed there in a pipe until the host fetches it; our
// host does not, and a driver that prints would hang when the pipe is full. The handshake is over when the first call comes.
func (s *served) hush() {
	os.Stdout, os.Stderr = s.stderr, s.stderr
	if err := unix.Dup3(int(s.stderr.Fd()), 1, 0); err != nil {
		slog.Warn("standard output is not redirected", "err", err.Error())
	}
}

func (s *served) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	if err := s.before(info.FullMethod); err != nil {
		return nil, err
	}
	defer s.idle.Reset(idleAfter)
	defer recovered(info.FullMethod, &err)
	return handle(ctx, req)
}

func (s *served) stream(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	if err := s.before(info.FullMethod); err != nil {
		return err
	}
	defer s.idle.Reset(idleAfter)
	defer recovered(info.FullMethod, &err)
	return handle(srv, st)
}

// recovered turns a panic into an error of class Internal.
func recovered(method string, err *error) {
	if r := recover(); r != nil {
		slog.Error("driver panics", "method", method, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = errgrpc.ToGRPC(fmt.Errorf("the driver panics: %v: %w", r, errdefs.ErrInternal))
	}
}

// lifeline is the descriptor that ends with the daemon, or nil where nobody gave us one.
func lifeline() *os.File {
	var st unix.Stat_t
	if unix.Fstat(plugins.Lifeline, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil
	}
	unix.CloseOnExec(plugins.Lifeline)
	if unix.SetNonblock(plugins.Lifeline, true) != nil {
		return nil
	}
	return os.NewFile(plugins.Lifeline, "lifeline")
}

// watch ends the server when the daemon is gone, or somebody asks for it.
func (s *served) watch(line *os.File, lingers bool, done <-chan struct{}) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, unix.SIGTERM)
	defer signal.Stop(asked)
	gone := make(chan struct{})
	if line != nil && !lingers {
		var reading sync.WaitGroup
		defer reading.Wait()
		defer func() { _ = line.Close() }()
		reading.Go(func() {
			// Nobody writes here: Read returns when the last writer is gone, or line is closed.
			if _, err := line.Read(make([]byte, 1)); err != nil {
				close(gone)
			}
		})
	}
	select {
	case <-done:
		return
	case <-gone:
		slog.Info("plugin ends", "why", "the daemon is gone")
	case <-asked:
		slog.Info("plugin ends", "why", "it was asked to")
	}
	s.stop(done)
}

// stop lets calls under way end, for a while, and then ends them.
func (s *served) stop(done <-chan struct{}) {
	g := s.grpc.Load()
	if g == nil { // not serving yet
		os.Exit(0)
	}
	drained := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainLimit):
		g.Stop()
	}
	<-done
}

// once is a plugin that is configured once, however often the daemon says it.
type once struct {
	p          plugins.Plugin
	configured atomic.Bool

	gate   chan struct{} // held while Configure runs
	setup  sync.Once
	config plugins.Config
}

// Info asks the plugin.
func (o *once) Info(ctx context.Context) (plugins.Info, error) { return o.p.Info(ctx) }

// Configure passes the first configuration on, and takes the same one again for an answer that was lost.
func (o *once) Configure(ctx context.Context, c plugins.Config) error {
	o.setup.Do(func() { o.gate = make(chan struct{}, 1) })
	select {
	case o.gate <- struct{}{}:
		defer func() { <-o.gate }()
	case <-ctx.Done():
		return fmt.Errorf("configure the plugin: %w", context.Cause(ctx))
	}
	if o.configured.Load() {
		if o.config.Root == c.Root && o.config.State == c.State && bytes.Equal(o.config.Options, c.Options) {
			return nil
		}
		return fmt.Errorf("configure the plugin: it is configured already, for %s; restart it: %w", o.config.Root, errdefs.ErrFailedPrecondition)
	}
	if err := o.p.Configure(ctx, c); err != nil {
		return err
	}
	o.config = c
	o.configured.Store(true)
	return nil
}
