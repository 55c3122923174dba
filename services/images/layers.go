package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/gantryd/gantry/internal/blob"
	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/unpack"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

func newBytes(b []byte) io.Reader { return bytes.NewReader(b) }

// transfer is the layers of one image on their way.
type transfer struct {
	s           *Service
	op          *meta.Op
	c           *content
	src         source
	snapshotter string // "" if nothing is unpacked
	report      Report

	rebase bool
	done   []chan struct{} // closed when the layer's snapshot is committed
	bytes  []int64         // of the layers' archives; each is its own goroutine's
}

// run brings all layers in.
func (t *transfer) run(ctx context.Context) error {
	if t.snapshotter != "" && len(t.c.layers) > 0 {
		var err error
		if t.rebase, err = t.s.Snapshots.Rebase(ctx, t.snapshotter); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	t.done = make([]chan struct{}, len(t.c.layers))
	for i := range t.c.layers {
		t.done[i] = make(chan struct{})
	}
	for i := range t.c.layers {
		t.say(i, "wait", 0)
		g.Go(func() error {
			if err := t.layer(ctx, i); err != nil {
				return fmt.Errorf("layer %s: %w", meta.Short(t.c.layers[i].Digest.String()), err)
			}
			close(t.done[i])
			return nil
		})
	}
	return g.Wait()
}

func (t *transfer) say(i int, verb string, current int64) {
	l := t.c.layers[i]
	t.report(&typesv1.Progress{Id: meta.Short(l.Digest.String()), Verb: verb, Current: current, Total: l.Size})
}

// layer brings one layer in. Of those who want the same layer for the same driver, one does it and the others find it done;
// whoever holds a layer's lock waits only for layers below it.
func (t *transfer) layer(ctx context.Context, i int) error {
	l := t.c.layers[i]
	if t.snapshotter == "" {
		if err := t.retry(ctx, i, nil); err != nil {
			return err
		}
		return t.measure(ctx, i)
	}
	unlock, err := t.s.unpacking.lock(ctx, t.snapshotter+"\x00"+l.chainID.String())
	if err != nil {
		return err
	}
	defer unlock()
	held, err := t.s.Snapshots.Held(ctx, t.op, t.snapshotter, l.chainID.String())
	if err != nil {
		return err
	}
	if held {
		if err := t.retry(ctx, i, nil); err != nil {
			return err
		}
		return t.measure(ctx, i)
	}
	u := &unpacking{t: t, i: i}
	if err := t.retry(ctx, i, u); err != nil {
		return err
	}
	if err := u.rest(ctx); err != nil {
		return err
	}
	return u.commit(ctx)
}

// retry fetches a layer, and unpacks it if u is not nil, and once more from the beginning where what was
// kept from an earlier attempt turns out to be wrong.
func (t *transfer) retry(ctx context.Context, i int, u *unpacking) error {
	resumed, err := t.fetch(ctx, i, u, false)
	if err == nil || !resumed || ctx.Err() != nil || !errdefs.IsDataLoss(err) && !errdefs.IsInvalidArgument(err) {
		return err
	}
	if u != nil {
		u.again = false
		if err := u.drop(ctx); err != nil {
			return err
		}
	}
	_, err = t.fetch(ctx, i, u, true)
	return err
}

// fetch is one attempt. resumed says that it went on from what an earlier one had left.
func (t *transfer) fetch(ctx context.Context, i int, u *unpacking, fresh bool) (resumed bool, err error) {
	l := t.c.layers[i]
	in, err := t.s.Blobs.Ingest(ctx, l.Descriptor)
	if errdefs.IsAlreadyExists(err) {
		t.say(i, "exists", l.Size)
		if u == nil {
			return false, nil
		}
		f, err := t.s.Blobs.Open(l.Digest)
		if err != nil {
			return false, err
		}
		t.say(i, "unpack", l.Size)
		return false, u.run(ctx, f)
	}
	if err != nil {
		return false, err
	}
	defer in.Close(nil)
	give, err := t.s.downloading().take(ctx)
	if err != nil {
		return false, err
	}
	if fresh {
		if err := in.Restart(); err != nil {
			give()
			return false, err
		}
	}
	resumed = in.Offset() > 0
	fctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	unpacked := make(chan error, 1)
	if u == nil {
		unpacked <- nil
	} else {
		follow, err := in.Follow()
		if err != nil {
			give()
			return resumed, err
		}
		go func() {
			err := u.run(ctx, follow)
			// A layer that is damaged is fetched to its end all the same, to find out whether it came as it was sent.
			if err != nil && !errdefs.IsDataLoss(err) {
				stop(err)
			}
			unpacked <- err
		}()
	}
	fetchErr := t.download(fctx, in, i)
	give()
	in.Close(fetchErr)
	unpackErr := <-unpacked
	if fetchErr == nil || unpackErr != nil && errors.Is(fetchErr, unpackErr) { // it was stopped because of that
		return resumed, unpackErr
	}
	return resumed, fetchErr
}

// download fills an ingest.
func (t *transfer) download(ctx context.Context, in *blob.Ingest, i int) error {
	t.say(i, "download", in.Offset())
	w := counter{in, func(n int64) { t.say(i, "download", n) }}
	if err := t.src.Fetch(ctx, t.c.layers[i].Descriptor, in.Offset(), w); err != nil {
		return err
	}
	if err := in.Commit(); err != nil {
		return err
	}
	if t.snapshotter == "" {
		t.say(i, "done", t.c.layers[i].Size)
	} else {
		t.say(i, "unpack", t.c.layers[i].Size)
	}
	return nil
}

// counter tells how far an ingest has come.
type counter struct {
	*blob.Ingest
	tell func(int64)
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.Ingest.Write(p)
	c.tell(c.Offset())
	return n, err
}

// measure finds out how big a layer's archive is that was unpacked by somebody else.
func (t *transfer) measure(ctx context.Context, i int) error {
	l := t.c.layers[i]
	if n, ok := t.s.sizeOf(l.diffID.String()); ok {
		t.bytes[i] = n
		return nil
	}
	give, err := t.s.unpacks.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	f, err := t.s.Blobs.Open(l.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	res, err := unpack.Run(ctx, unpack.Job{Form: unpack.Measure, DiffID: l.diffID, Limits: t.s.o.Limits}, f)
	if err != nil {
		return err
	}
	t.bytes[i] = res.Bytes
	t.s.remember(l.diffID.String(), res.Bytes)
	return nil
}

// sizeOf is what an image that is here, or a pull since we began, says of a layer.
func (s *Service) sizeOf(diffID string) (n int64, ok bool) {
	s.mu.Lock()
	n, ok = s.sizes[diffID]
	s.mu.Unlock()
	if ok {
		return n, true
	}
	_ = s.DB.View(func(tx *meta.Tx) error {
		for _, img := range images.All(tx) {
			for _, l := range img.GetLayers() {
				if l.GetDiffId() == diffID {
					n, ok = l.GetBytes(), true
				}
			}
		}
		return nil
	})
	return n, ok
}

// maxSizes bounds what is remembered; beyond it layers are measured again.
const maxSizes = 10_000

func (s *Service) remember(diffID string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sizes) >= maxSizes {
		clear(s.sizes)
	}
	s.sizes[diffID] = n
}

// unpacking is one layer on its way into a snapshot.
type unpacking struct {
	t     *transfer
	i     int
	key   string // of the temporary snapshot; "" if there is none
	again bool   // it has to be applied to its parent, once it is here
}

func (u *unpacking) below() string {
	if u.i == 0 {
		return ""
	}
	return u.t.c.layers[u.i-1].chainID.String()
}

// parented waits until the layer below is committed.
func (u *unpacking) parented(ctx context.Context) error {
	if u.i == 0 {
		return nil
	}
	select {
	case <-u.t.done[u.i-1]:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run unpacks what r holds, and closes it: side by side with the layers below where the driver can hang it on them afterwards.
func (u *unpacking) run(ctx context.Context, r io.ReadCloser) error {
	defer r.Close()
	if !u.t.rebase {
		return u.apply(ctx, r)
	}
	err := u.write(ctx, r, unpack.Overlay, "")
	if !errors.Is(err, unpack.ErrNeedsParent) {
		return err
	}
	u.again = true
	return u.drop(ctx)
}

// rest does what run could not: it applies a layer that refers to its parent's files to its parent. The blob is here by now.
func (u *unpacking) rest(ctx context.Context) error {
	if !u.again {
		return nil
	}
	f, err := u.t.s.Blobs.Open(u.t.c.layers[u.i].Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	return u.apply(ctx, f)
}

// apply unpacks onto the mounted parent.
func (u *unpacking) apply(ctx context.Context, r io.Reader) error {
	if err := u.parented(ctx); err != nil {
		return err
	}
	return u.write(ctx, r, unpack.Apply, u.below())
}

func (u *unpacking) write(ctx context.Context, r io.Reader, form unpack.Form, parent string) error {
	t, l := u.t, u.t.c.layers[u.i]
	give, err := t.s.unpacks.take(ctx)
	if err != nil {
		return err
	}
	defer give()
	key := "unpack-" + rand.Text()
	mounts, err := t.s.Snapshots.Prepare(ctx, t.op, t.snapshotter, key, parent, snapshotters.Options{})
	if err != nil {
		return err
	}
	u.key = key
	fault.Point("images.pull.prepared")
	res, err := unpack.Run(ctx, unpack.Job{
		Mounts: mountsOf(mounts), Form: form, Parented: u.i > 0, DiffID: l.diffID, Limits: t.s.o.Limits,
	}, r)
	if err != nil {
		return err
	}
	t.bytes[u.i] = res.Bytes
	t.s.remember(l.diffID.String(), res.Bytes)
	return nil
}

func mountsOf(in []*typesv1.Mount) (out []unpack.Mount) {
	for _, m := range in {
		out = append(out, unpack.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	return out
}

// drop forgets what was unpacked.
func (u *unpacking) drop(ctx context.Context) error {
	if u.key == "" {
		return nil
	}
	key := u.key
	u.key = ""
	return u.t.s.Snapshots.Remove(ctx, u.t.op, u.t.snapshotter, key)
}

// commit hangs the snapshot where it belongs. Blob and archive were verified by now.
func (u *unpacking) commit(ctx context.Context) error {
	if err := u.parented(ctx); err != nil {
		return err
	}
	fault.Point("images.pull.written")
	l := u.t.c.layers[u.i]
	if err := u.t.s.Snapshots.Commit(ctx, u.t.op, u.t.snapshotter, u.key, l.chainID.String(), u.below()); err != nil {
		return err
	}
	u.t.say(u.i, "done", l.Size)
	return nil
}
