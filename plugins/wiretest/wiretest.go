// Package wiretest puts wires between a suite and the driver under test.
//
// A driver is a plugin's or a built-in's, and a built-in is a plugin too: what is true of it when it is
// called must be true of it when it is called over a wire that loses things. Suites therefore run
// every implementation over [Wires]:
//
//	for _, w := range wiretest.Wires {
//		t.Run(w.Name, func(t *testing.T) {
//			d := wiretest.Over(t, w, newDriver(t), snapshotters.Register, snapshotters.NewClient)
//			…
//		})
//	}
//
// The faulty wire is where idempotency is proved: most calls on it reach the driver twice.
package wiretest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// Wire is one way between a caller and a driver.
type Wire struct {
	// Name is fit for t.Run.
	Name string
	dial func(t testing.TB, register func(grpc.ServiceRegistrar)) grpc.ClientConnInterface
}

// Wires are the three: a call, gRPC, and gRPC that delays, drops the answer after the driver
// did the work, and resets the connection, with a client that tries once more as plugins/host does.
var Wires = []Wire{
	{Name: "direct"},
	{Name: "grpc", dial: plain},
	{Name: "faulty", dial: faulty},
}

// Direct says whether there is no wire: the driver is called.
func (w Wire) Direct() bool { return w.dial == nil }

// Connect serves what register registers until the test ends, and returns the client's end. It is nil
// for the wire that is none.
func (w Wire) Connect(t testing.TB, register func(grpc.ServiceRegistrar)) grpc.ClientConnInterface {
	t.Helper()
	if w.Direct() {
		return nil
	}
	return w.dial(t, register)
}

// Over returns d as it looks from the other end of w: d itself where there is no wire.
func Over[D any, C any](t testing.TB, w Wire, d D, register func(grpc.ServiceRegistrar, D), client func(grpc.ClientConnInterface) C) D {
	t.Helper()
	if w.Direct() {
		return d
	}
	cc := w.Connect(t, func(s grpc.ServiceRegistrar) { register(s, d) })
	far, ok := any(client(cc)).(D)
	if !ok {
		t.Fatalf("the client of the family does not have the type that is served")
	}
	return far
}

func plain(t testing.TB, register func(grpc.ServiceRegistrar)) grpc.ClientConnInterface {
	return connect(t, bufconn.Listen(64<<10), register, nil, nil)
}

func connect(t testing.TB, l listener, register func(grpc.ServiceRegistrar), so []grpc.ServerOption, do []grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	s := grpc.NewServer(so...)
	register(s)
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	cc, err := grpc.NewClient("passthrough:///wiretest", append(do,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		s.Stop()
		serving.Wait()
	})
	return cc
}

type listener interface {
	net.Listener
	DialContext(ctx context.Context) (net.Conn, error)
}

// again marks the second try of a call. The wire leaves it alone: the host promises one more try, not a lucky one.
const again = "gantry-again"

// fault is what befalls a call.
type fault int

const (
	none        fault = iota
	late              // the driver hears of it after a while
	lost              // the driver does it, and nobody hears of it
	reset             // the driver does it, and the connection ends
	neverHeard        // the connection ends before the driver hears of it
	faultKinds        // how many there are
	longestWait = 4 * time.Millisecond
)

// wire is a faulty one.
type wire struct {
	*bufconn.Listener

	mu    sync.Mutex
	dice  *rand.Rand
	seen  map[string]int // calls by method
	conns map[net.Conn]struct{}

	// calm is held for reading by what must not be disturbed: second tries, and streams that
	// have begun. Connections are reset only when nobody holds it.
	calm sync.RWMutex
}

func faulty(t testing.TB, register func(grpc.ServiceRegistrar)) grpc.ClientConnInterface {
	w := &wire{
		Listener: bufconn.Listen(64 << 10),
		dice:     rand.New(rand.NewPCG(0x67616e74, 0x7279)), //nolint:gosec // the same faults in every run are the point
		seen:     map[string]int{},
		conns:    map[net.Conn]struct{}{},
	}
	return connect(t, w, register,
		[]grpc.ServerOption{grpc.UnaryInterceptor(w.serveUnary), grpc.StreamInterceptor(w.serveStream)},
		[]grpc.DialOption{grpc.WithUnaryInterceptor(w.callUnary), grpc.WithStreamInterceptor(w.callStream)})
}

// Accept remembers what it accepts, so that it can be reset.
func (w *wire) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns[c] = struct{}{}
	return c, nil
}

// next decides. The first calls of every method meet every kind of fault in turn, so that a
// suite that calls a method a few times has seen them all; after that the dice fall.
func (w *wire) next(ctx context.Context, method string) fault {
	if md, _ := metadata.FromIncomingContext(ctx); len(md.Get(again)) > 0 {
		return none
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.seen[method]
	w.seen[method]++
	if first := []fault{lost, reset, neverHeard, late}; n < len(first) {
		return first[n]
	}
	return fault(w.dice.IntN(int(faultKinds)))
}

func (w *wire) wait() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.dice.Int64N(int64(longestWait)))
}

// resetAll ends every connection, unless something must not be disturbed.
func (w *wire) resetAll() {
	if !w.calm.TryLock() {
		return
	}
	defer w.calm.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
		delete(w.conns, c)
	}
}

func (w *wire) serveUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	f := w.next(ctx, info.FullMethod)
	switch f {
	case late:
		time.Sleep(w.wait())
	case neverHeard:
		w.resetAll()
		return nil, status.Error(codes.Unavailable, "wiretest: the connection was reset")
	default:
	}
	answer, err := handle(ctx, req)
	switch f {
	case reset:
		w.resetAll()
		return nil, status.Error(codes.Unavailable, "wiretest: the connection was reset")
	case lost:
		return nil, status.Error(codes.Unavailable, "wiretest: the answer was lost")
	default:
		return answer, err
	}
}

func (w *wire) serveStream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	switch w.next(s.Context(), info.FullMethod) {
	case late:
		time.Sleep(w.wait())
	case lost, reset, neverHeard:
		return status.Error(codes.Unavailable, "wiretest: the stream did not begin")
	default:
	}
	return handle(srv, s)
}

// callUnary is the client that tries once more.
func (w *wire) callUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
		return err
	}
	w.calm.RLock()
	defer w.calm.RUnlock()
	ctx = metadata.AppendToOutgoingContext(ctx, again, "1")
	if err = invoke(ctx, method, req, reply, cc, opts...); status.Code(err) != codes.Unavailable || ctx.Err() != nil {
		return err
	}
	// The connection may have been reset by another call's fault just before it was calm, and the client not have
	// noticed yet. That happens once: nothing is reset now.
	return invoke(ctx, method, req, reply, cc, opts...)
}

// callStream opens streams of answers that begin once more if they did not begin.
func (w *wire) callStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	open := func(ctx context.Context) (grpc.ClientStream, error) { return streamer(ctx, desc, cc, method, opts...) }
	w.calm.RLock()
	release := sync.OnceFunc(w.calm.RUnlock)
	context.AfterFunc(ctx, release) // a range that is left early ends its context
	s, err := open(ctx)
	if err != nil {
		release()
		return nil, err
	}
	return &stream{ClientStream: s, ctx: ctx, open: open, release: release}, nil
}

type stream struct {
	grpc.ClientStream
	ctx     context.Context //nolint:containedctx // of the stream, as gRPC's own have
	open    func(context.Context) (grpc.ClientStream, error)
	release func()
	sent    []any
	began   bool
}

// SendMsg remembers the request.
func (s *stream) SendMsg(m any) error {
	s.sent = append(s.sent, m)
	return s.ClientStream.SendMsg(m)
}

// RecvMsg opens the stream again if the first thing that it hears is that it did not begin.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if !s.began && status.Code(err) == codes.Unavailable {
		err = s.reopen(m)
	}
	s.began = true
	if err != nil {
		s.release()
	}
	return err
}

func (s *stream) reopen(m any) error {
	next, err := s.open(metadata.AppendToOutgoingContext(s.ctx, again, "1"))
	if err != nil {
		return err
	}
	for _, r := range s.sent {
		if err := next.SendMsg(r); err != nil {
			return err
		}
	}
	if err := next.CloseSend(); err != nil {
		return err
	}
	s.ClientStream = next
	return next.RecvMsg(m)
}
