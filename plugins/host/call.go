package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// graceForDeath is how long after a broken connection we look whether the process has died. The
// kernel says both within a millisecond of each other.
const graceForDeath = 250 * time.Millisecond

// aheadOfUs is how far another process's timers may be ahead of ours.
const aheadOfUs = 50 * time.Millisecond

var errLimit = errors.New("the limit of the verb")

// call is one call under way.
type call struct {
	s       *supervised
	verb    verb
	noun    string
	began   time.Time
	ours    bool // the verb's limit comes before the caller's deadline
	release func()
}

// begin bounds a call and takes its turn.
func (s *supervised) begin(ctx context.Context, method string, request any) (context.Context, *call, error) {
	v := s.host.o.Limits.verbOf(method)
	c := &call{s: s, verb: v, noun: nounOf(request), began: time.Now(), ours: true}
	if d, ok := ctx.Deadline(); ok {
		c.ours = time.Until(d) > v.limit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, v.limit, errLimit)
	if err := s.turns.take(ctx); err != nil {
		err = c.sentence(ctx, err, nil)
		cancel()
		return nil, nil, err
	}
	c.release = sync.OnceFunc(func() {
		s.turns.end()
		cancel()
	})
	return ctx, c, nil
}

// Invoke makes one call of whatever process serves now, and one more if that one goes away: allowed, because
// every verb is idempotent by key. It implements grpc.ClientConnInterface for the wires of the families.
func (s *supervised) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	ctx, c, err := s.begin(ctx, method, args)
	if err != nil {
		return err
	}
	defer c.release()
	var gone *process
	for again := false; ; again = true {
		p, err := c.process(ctx, gone)
		if err != nil {
			return c.sentence(ctx, err, gone)
		}
		stop := s.suspectLater(p)
		err = p.conn.Invoke(ctx, method, args, reply, opts...)
		stop()
		if err == nil {
			s.answered()
			return nil
		}
		err = ifClosed(ctx, err)
		if again || status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return c.failed(ctx, err, p)
		}
		gone = goneOf(p)
	}
}

// process finds the process to call.
func (c *call) process(ctx context.Context, gone *process) (*process, error) {
	c.s.host.want(c.s)
	p, err := c.s.ready(ctx, gone)
	if err != nil {
		return nil, err
	}
	if p.protocol < c.verb.since {
		return nil, status.Errorf(codes.Unimplemented, "the plugin speaks version %d of the driver contract, this needs %d", p.protocol, c.verb.since)
	}
	return p, nil
}

// ifClosed says what it means that a call was cancelled by nobody: its connection was closed, because the process was replaced.
func ifClosed(ctx context.Context, err error) error {
	if status.Code(err) == codes.Canceled && ctx.Err() == nil {
		return status.Error(codes.Unavailable, "the plugin was replaced")
	}
	return err
}

// goneOf waits for the death of a process whose connection broke. One that lives on is tried again as it is.
func goneOf(p *process) *process {
	if p.isDeadSoon() {
		return p
	}
	return nil
}

// failed books an error that the call ends with, and puts it into words.
func (c *call) failed(ctx context.Context, err error, p *process) error {
	switch {
	case late(ctx, err):
		// Who gives a call a moment only cannot make us replace the process.
		if c.ours || time.Since(c.began) >= c.s.host.o.Limits.Hang {
			c.s.timedOut(p)
		}
	case status.Code(err) == codes.Unavailable:
		p.isDeadSoon() // and has last words
	case status.Code(err) == codes.Canceled:
	default:
		c.s.answered() // an error is an answer
	}
	return c.sentence(ctx, err, p)
}

// late reports whether a call ran out of time. The other end keeps the time too, and may be a moment ahead.
func late(ctx context.Context, err error) bool {
	d, ok := ctx.Deadline()
	return status.Code(err) == codes.DeadlineExceeded && ok && time.Until(d) < aheadOfUs
}

// sentence says who did not do what: "driver overlay: prepare x: no answer within 1m0s".
func (c *call) sentence(ctx context.Context, err error, p *process) error {
	st := status.Convert(err)
	what := strings.TrimSpace(c.verb.word + " " + c.noun)
	prefix := "driver " + c.s.id.Name + ": " + what + ": "
	text := st.Message()
	if strings.HasPrefix(text, prefix) {
		return err // it has been said
	}
	switch code := st.Code(); {
	case late(ctx, err):
		text = fmt.Sprintf("no answer within %s", time.Since(c.began).Round(time.Millisecond))
		if c.ours {
			text = fmt.Sprintf("no answer within %s, which is the limit", c.verb.limit)
		}
	case code == codes.Canceled && ctx.Err() != nil:
		text = "the caller gave up"
	case code == codes.Unavailable && p != nil && p.isDead():
		text = "the plugin died: " + p.lastWords()
	case code == codes.Unavailable && strings.HasPrefix(text, "connection error"), strings.HasPrefix(text, "error reading from server"):
		text = "the connection to the plugin broke: " + oneLine(text)
	}
	text = unsaid(text, c.verb.word, c.noun)
	out := st.Proto()
	out.Message = prefix + text
	return status.ErrorProto(out)
}

// unsaid is text without a beginning in which a driver says itself what it could not do to what:
// "publish ports of endpoint 4f1c…: ".
func unsaid(text, verb, noun string) string {
	said, rest, ok := strings.Cut(text, ": ")
	if ok && verb != "" && (said == verb && noun == "" || noun != "" && strings.HasPrefix(said, verb+" ") && strings.Contains(said, noun)) {
		return rest
	}
	return text
}

// NewStream opens a stream of answers; it begins once more if the process goes away before the first of them. Later it
// ends with the error: who listened has seen a part, and knows best what to do.
func (s *supervised) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, c, err := s.begin(ctx, method, nil)
	if err != nil {
		return nil, err
	}
	st := &stream{ctx: ctx, c: c, desc: desc, method: method, opts: opts}
	if err := st.open(nil); err != nil {
		c.release()
		return nil, err
	}
	context.AfterFunc(ctx, c.release) // a range that is left early ends its context and tells nobody else
	return st, nil
}

type stream struct {
	grpc.ClientStream
	ctx    context.Context //nolint:containedctx // of the stream, as gRPC's own have
	c      *call
	p      *process
	desc   *grpc.StreamDesc
	method string
	opts   []grpc.CallOption
	sent   []any
	tried  bool // once more
	heard  bool // an answer, or the end
}

// open opens the stream, and once more if the process goes away.
func (st *stream) open(gone *process) error {
	for {
		p, err := st.c.process(st.ctx, gone)
		if err != nil {
			return st.c.sentence(st.ctx, err, gone)
		}
		s, err := p.conn.NewStream(st.ctx, st.desc, st.method, st.opts...)
		if err == nil {
			st.ClientStream, st.p = s, p
			return nil
		}
		if err = ifClosed(st.ctx, err); !st.mayTryAgain(err) {
			return st.c.failed(st.ctx, err, p)
		}
		st.tried = true
		gone = goneOf(p)
	}
}

func (st *stream) mayTryAgain(err error) bool {
	return status.Code(err) == codes.Unavailable && !st.tried && !st.heard && !st.desc.ClientStreams && st.ctx.Err() == nil
}

// SendMsg sends, and remembers what it sent.
func (st *stream) SendMsg(m any) error {
	if !st.desc.ClientStreams {
		st.sent = append(st.sent, m)
		st.c.noun = nounOf(m)
	}
	return st.ClientStream.SendMsg(m)
}

// RecvMsg receives.
func (st *stream) RecvMsg(m any) error {
	stop := st.c.s.suspectLater(st.p)
	err := ifClosed(st.ctx, st.ClientStream.RecvMsg(m))
	stop()
	if st.mayTryAgain(err) {
		st.tried = true
		err = st.again(m)
	}
	st.heard = true
	switch {
	case err == nil:
		st.c.s.answered()
		return nil
	case errors.Is(err, io.EOF):
		st.c.release()
		return err
	}
	err = st.c.failed(st.ctx, err, st.p)
	st.c.release()
	return err
}

func (st *stream) again(m any) error {
	if err := st.open(goneOf(st.p)); err != nil {
		return err
	}
	for _, r := range st.sent {
		if err := st.ClientStream.SendMsg(r); err != nil {
			return err
		}
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	return ifClosed(st.ctx, st.ClientStream.RecvMsg(m))
}
