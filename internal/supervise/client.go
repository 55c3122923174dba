package supervise

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/rpc"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// sliceTime is how long one long poll lasts at most. ttrpc does not tell a server that its caller has
// left; a deadline it does.
const sliceTime = 30 * time.Second

// client is a Shim. Once nobody holds it any more its connection is closed.
type client struct {
	calls
	t    *ttrpc.Client
	dir  bundle.Dir
	gone chan struct{}

	mu      sync.Mutex
	streams map[*streams]bool // open
}

// dial connects to the shim of dir, whoever that is.
func dial(ctx context.Context, dir bundle.Dir) (*client, error) {
	conn, err := connect(ctx, dir, bundle.SocketFile)
	if err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	t := ttrpc.NewClient(conn, ttrpc.WithOnClose(sync.OnceFunc(func() { close(gone) })))
	c := &client{calls: calls{shimv1.NewShimClient(t)}, t: t, dir: dir, gone: gone, streams: map[*streams]bool{}}
	runtime.AddCleanup(c, func(t *ttrpc.Client) { _ = t.Close() }, t)
	return c, nil
}

// classify puts a context's end first: what was cut short has often failed otherwise too.
func classify(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return rpc.FromTTRPC(err)
}

// Gone is closed when the connection is lost.
func (c *client) Gone() <-chan struct{} { return c.gone }

// Shutdown ends the shim. What it still has for clients who read slowly is fetched first: it is bounded,
// and they get it from here.
func (c *client) Shutdown(ctx context.Context, req *shimv1.ShutdownRequest) (*shimv1.ShutdownResponse, error) {
	for _, s := range c.open() {
		s.fetch(ctx)
	}
	return c.calls.Shutdown(ctx, req)
}

func (c *client) open() (all []*streams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.streams {
		all = append(all, s)
	}
	return all
}

// Close closes the connection; the shim lives on.
func (c *client) Close() error { return c.t.Close() }

// IO joins a process's streams.
func (c *client) IO(ctx context.Context, process string, replay bool) (IO, error) {
	return c.join(ctx, frame.Greeting{Process: process, Replay: replay})
}

// connect connects to a socket in the state directory. The path of one may be longer than a socket's
// address: it is reached through the directory's descriptor then.
func connect(ctx context.Context, dir bundle.Dir, name string) (*net.UnixConn, error) {
	path := filepath.Join(dir.State, name)
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		fd, err := unix.Open(dir.State, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir.State, err)
		}
		defer unix.Close(fd) //nolint:errcheck // of no use any more
		path = "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return conn.(*net.UnixConn), nil //nolint:forcetypeassert // what DialContext returns for "unix"
}

// lastWords is the end of shim.log, on one line, for an error.
func lastWords(dir bundle.Dir) string {
	raw, err := os.ReadFile(filepath.Join(dir.State, bundle.LogFile))
	if err != nil || len(raw) == 0 {
		return ""
	}
	const most = 512
	raw = raw[max(0, len(raw)-most):]
	return " (its last words: " + strings.Join(strings.Fields(string(raw)), " ") + ")"
}
