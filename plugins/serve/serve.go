// Package serve is what a plugin's main function calls.
//
// A plugin that serves volumes from somewhere else is this much, and the methods of volume.Backend:
//
//	type driver struct{ … }
//
//	func (d *driver) Info(context.Context) (plugins.Info, error) {
//		return plugins.Info{Family: plugins.Volume, Name: "elsewhere", Version: "1.0"}, nil
//	}
//
//	func (d *driver) Configure(ctx context.Context, c plugins.Config) error {
//		d.root = c.Root
//		return c.Decode(&d.options)
//	}
//
//	func main() {
//		d := &driver{}
//		serve.Main(d, serve.Drivers{Volume: d})
//	}
//
// Put the executable at /usr/lib/gantry/plugins/volume/elsewhere and it is found.
//
// What Main sees to: the handshake and both versions of the contract; that only the daemon's user
// connects; that a panic in a method costs one call (Internal) and not the process; that the
// process ends with its daemon (the lifeline) unless it lingers, and not because nobody reads what it
// prints; that calls before Configure are refused and Configure happens once. slog and log write JSON lines to the
// file that the daemon keeps, and so does whatever is printed on standard output.
//
// A driver that is an io.Closer is closed when the process ends in an orderly way. It may be killed at any other
// time: every method is idempotent, and nothing may depend on Close.
package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/snapshotters"
)

const (
	drainLimit = 500 * time.Millisecond // calls under way get this long when the process is to end
	closeLimit = 2 * time.Second        // and the driver's Close this long after that
	idleAfter  = 20 * time.Second       // without a call, memory is given back
	processors = 4                      // more would only cost memory: drivers wait for the kernel
)

// Drivers is what a plugin may serve; it fills in the one of its family.
type Drivers struct {
	Snapshotter snapshotters.Snapshotter
	Network     network.Driver // may be a network.Publisher too
	Volume      volume.Backend // may be a volume.Counter too
}

// register offers the driver of family f.
func (d Drivers) register(f plugins.Family, s grpc.ServiceRegistrar) error {
	switch {
	case f == plugins.Snapshotter && d.Snapshotter != nil:
		snapshotters.Register(s, d.Snapshotter)
	case f == plugins.Network && d.Network != nil:
		network.Register(s, d.Network)
	case f == plugins.Volume && d.Volume != nil:
		volume.Register(s, d.Volume)
	default:
		return fmt.Errorf("serve plugin: it says it is of family %q but has no such driver", f)
	}
	return nil
}

// closers are those of the drivers, and p, that want to be closed; each once.
func (d Drivers) closers(p plugins.Plugin) (out []io.Closer) {
	seen := map[any]bool{}
	for _, v := range []any{d.Snapshotter, d.Network, d.Volume, p} {
		if c, ok := v.(io.Closer); ok && !seen[v] {
			seen[v] = true
			out = append(out, c)
		}
	}
	return out
}

// Main serves d until the daemon is gone or says so, and ends the process.
func Main(p plugins.Plugin, d Drivers) {
	stderr := os.Stderr
	slog.SetDefault(slog.New(slog.NewJSONHandler(stderr, nil)))
	if err := run(p, d, stderr); err != nil {
		slog.Error("plugin ends", "err", err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

func run(p plugins.Plugin, d Drivers, stderr *os.File) error {
	info, err := p.Info(context.Background()) // Info takes no time and works before anything else
	if err != nil {
		return fmt.Errorf("serve plugin: info: %w", err)
	}
	line := lifeline()
	// A daemon that is killed leaves pipes that nobody reads; to write there must not kill the plugin.
	signal.Ignore(unix.SIGPIPE)
	frugal(info)

	s := &served{plugin: &once{p: p}, stderr: stderr}
	register := func(to *grpc.Server) error {
		plugins.Register(to, s.plugin)
		return d.register(info.Family, to)
	}
	if err := register(grpc.NewServer()); err != nil { // before anybody is told that we serve
		return err
	}
	var watch sync.WaitGroup
	done := make(chan struct{})
	watch.Go(func() { s.watch(line, info.Lingers, done) })

	set := plugin.PluginSet{string(info.Family): &adapter{register: register}}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig:  plugins.Handshake,
		VersionedPlugins: map[int]plugin.PluginSet{plugins.Protocol: set, plugins.Oldest: set},
		GRPCServer:       s.server,
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: stderr, JSONFormat: true}),
	})
	close(done)
	watch.Wait()
	closeAll(d.closers(p))
	return nil
}

// frugal makes a small process of a Go program: there is one for every driver, and most of them idle.
func frugal(info plugins.Info) {
	if runtime.GOMAXPROCS(0) > processors {
		runtime.GOMAXPROCS(processors)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	// The daemon executes a descriptor, so the kernel calls the process by a number; this is for ps and top.
	_ = os.WriteFile("/proc/self/comm", []byte("gantry:"+info.Name), 0)
}

func closeAll(all []io.Closer) {
	var closing sync.WaitGroup
	for _, c := range all {
		closing.Go(func() {
			if err := c.Close(); err != nil {
				slog.Warn("driver does not close", "err", err.Error())
			}
		})
	}
	closed := make(chan struct{})
	go func() {
		closing.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(closeLimit): // the process ends with its goroutines
		slog.Warn("driver takes too long to close")
	}
}

// adapter is a driver in go-plugin's words.
type adapter struct {
	plugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server) error
}

var _ plugin.GRPCPlugin = (*adapter)(nil)

// GRPCServer registers the services.
func (a *adapter) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error { return a.register(s) }

// GRPCClient is the host's business, which has its own.
func (a *adapter) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("plugins/serve only serves")
}
