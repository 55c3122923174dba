package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest is the most bytes a manifest, index or configuration may have.
const MaxManifest = 4 << 20

// The media types of Docker's side (https://distribution.github.io/distribution/spec/manifest-v2-2/).
const (
	DockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList          = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	DockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerList, DockerManifest}

// generic are types under which registries without knowledge of manifests serve them.
var generic = []string{"", "application/json", "application/octet-stream", "text/plain"}

func accept() http.Header { return http.Header{"Accept": {strings.Join(manifestTypes, ", ")}} }

// Resolve asks what the reference means now.
func (r *Repository) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	path := "/manifests/" + r.name()
	resp, err := r.do(ctx, http.MethodHead, path, accept(), http.StatusOK, http.StatusMethodNotAllowed, http.StatusNotImplemented)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_ = resp.Body.Close()
	desc := ocispec.Descriptor{MediaType: mediaType(resp), Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
	if d, ok := r.ref.(reference.Digested); ok && desc.Digest == "" {
		desc.Digest = d.Digest()
	}
	if resp.StatusCode != http.StatusOK || desc.Digest.Validate() != nil || desc.Size <= 0 || !slices.Contains(manifestTypes, desc.MediaType) {
		desc, _, err = r.get(ctx, path) // it does not know how to answer HEAD
		if err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if d, ok := r.ref.(reference.Digested); ok && desc.Digest != d.Digest() {
		return ocispec.Descriptor{}, fmt.Errorf("registry %s answers with %s: %w", r.domain, desc.Digest, errdefs.ErrDataLoss)
	}
	if desc.Size > MaxManifest {
		return ocispec.Descriptor{}, tooBig(desc.Size)
	}
	return desc, nil
}

// name is the tag or digest asked for.
func (r *Repository) name() string {
	switch ref := r.ref.(type) {
	case reference.Digested:
		return ref.Digest().String()
	case reference.Tagged:
		return ref.Tag()
	}
	return "latest"
}

func mediaType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

func tooBig(n int64) error {
	return fmt.Errorf("its manifest has %d bytes, at most %d are allowed: %w", n, MaxManifest, errdefs.ErrInvalidArgument)
}

// get fetches a manifest, whose digest is whatever it is.
func (r *Repository) get(ctx context.Context, path string) (ocispec.Descriptor, []byte, error) {
	resp, err := r.do(ctx, http.MethodGet, path, accept(), http.StatusOK)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer resp.Body.Close()
	t := mediaType(resp)
	if slices.Contains([]string{DockerSchema1, DockerSchema1Signed}, t) {
		return ocispec.Descriptor{}, nil, ErrSchema1
	}
	if !slices.Contains(manifestTypes, t) && !slices.Contains(generic, t) {
		return ocispec.Descriptor{}, nil, &failure{
			class: errdefs.ErrFailedPrecondition,
			says:  fmt.Sprintf("registry %s answers with %s where a manifest was expected: is it a registry, and is a proxy or login page in between?", r.domain, t),
		}
	}
	raw, err := r.readAll(ctx, resp, MaxManifest)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if t, err = TypeOf(raw, t); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("registry %s: %w", r.domain, err)
	}
	return ocispec.Descriptor{MediaType: t, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, nil
}

// ErrSchema1 says that an image is of the kind Docker made before 2016.
var ErrSchema1 = fmt.Errorf("it is in Docker's schema 1, which nobody can verify: push it again with a newer docker, or convert it with skopeo copy --format v2s2: %w", errdefs.ErrNotImplemented)

// TypeOf finds out what kind of manifest raw is. What it says of itself, what it was announced as and what is in it must
// agree: a document that is read as a manifest by one and as an index by another verifies for both (CVE-2021-41190).
func TypeOf(raw []byte, announced string) (string, error) {
	var m struct {
		SchemaVersion int
		MediaType     string
		Config        *json.RawMessage
		Layers        *json.RawMessage
		Manifests     *json.RawMessage
		FSLayers      *json.RawMessage
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("its manifest is not well formed: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if m.SchemaVersion == 1 || m.FSLayers != nil {
		return "", ErrSchema1
	}
	index := m.Manifests != nil
	if index && (m.Layers != nil || m.Config != nil) {
		return "", fmt.Errorf("its manifest is an index and an image at once: %w", errdefs.ErrInvalidArgument)
	}
	t := m.MediaType
	if slices.Contains(generic, announced) {
		announced = ""
	}
	switch {
	case t != "" && announced != "" && t != announced:
		return "", fmt.Errorf("its manifest calls itself %.100q and was announced as %.100q: %w", t, announced, errdefs.ErrInvalidArgument)
	case t == "" && announced != "":
		t = announced
	case t == "" && index:
		t = ocispec.MediaTypeImageIndex
	case t == "":
		t = ocispec.MediaTypeImageManifest
	}
	switch {
	case !slices.Contains(manifestTypes, t):
		return "", fmt.Errorf("its manifest is of the kind %.100q, which is no image's: %w", t, errdefs.ErrInvalidArgument)
	case index != (t == ocispec.MediaTypeImageIndex || t == DockerList):
		return "", fmt.Errorf("its manifest calls itself %q and is not: %w", t, errdefs.ErrInvalidArgument)
	}
	return t, nil
}

// readAll reads an answer of at most limit bytes.
func (r *Repository) readAll(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, tooBig(resp.ContentLength)
	}
	w := r.watch(resp.Body)
	raw, err := io.ReadAll(io.LimitReader(w, limit+1))
	stalled := w.stop()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case stalled:
		return nil, r.stalledError(int64(len(raw)), resp.ContentLength)
	case err != nil:
		return nil, r.reachError(ctx, err)
	case int64(len(raw)) > limit:
		return nil, tooBig(int64(len(raw)))
	}
	return raw, nil
}

// Manifest fetches a manifest or index and verifies it.
func (r *Repository) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > MaxManifest {
		return nil, tooBig(desc.Size)
	}
	_, raw, err := r.get(ctx, "/manifests/"+desc.Digest.String())
	if err != nil {
		return nil, err
	}
	return raw, verify("manifest", desc, raw)
}

// Config fetches a small blob and verifies it.
func (r *Repository) Config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > MaxManifest {
		return nil, fmt.Errorf("its configuration has %d bytes, at most %d are allowed: %w", desc.Size, MaxManifest, errdefs.ErrInvalidArgument)
	}
	var b buffer
	if err := r.Fetch(ctx, desc, 0, &b); err != nil {
		return nil, err
	}
	return b, verify("configuration", desc, b)
}

type buffer []byte

func (b *buffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

func verify(what string, desc ocispec.Descriptor, raw []byte) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("%s %.80q: %w: %w", what, string(desc.Digest), err, errdefs.ErrInvalidArgument)
	}
	if int64(len(raw)) != desc.Size || desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
		return fmt.Errorf("%s %s: what arrived is %s: it was changed on its way or where it came from: %w", what, desc.Digest, digest.FromBytes(raw), errdefs.ErrDataLoss)
	}
	return nil
}

// Fetch writes a blob to w from offset on: desc.Size-offset bytes, neither more nor less. A transfer that breaks or stalls is taken up again
// where it was. The bytes are not verified: w's owner does. What w says ends it.
func (r *Repository) Fetch(ctx context.Context, desc ocispec.Descriptor, offset int64, w io.Writer) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("blob %.80q: %w: %w", string(desc.Digest), err, errdefs.ErrInvalidArgument)
	}
	pause := r.config.Pause
	for try, last := 1, offset; offset < desc.Size; try++ {
		n, err := r.fetch(ctx, desc, offset, w)
		offset += n
		if err == nil {
			continue
		}
		if offset-last >= 1<<20 { // it got on: that it broke off is no reason to give up
			try, last, pause = 1, offset, r.config.Pause
		}
		wait, again := retryAfter(err, pause, try)
		if !again || try >= r.config.Tries {
			return fmt.Errorf("fetch blob %s: %w", desc.Digest, err)
		}
		if err := sleep(ctx, wait); err != nil {
			return fmt.Errorf("fetch blob %s: %w", desc.Digest, err)
		}
		pause *= 2
	}
	return nil
}

// fetch is one request of Fetch. It returns how many bytes w took.
func (r *Repository) fetch(ctx context.Context, desc ocispec.Descriptor, offset int64, w io.Writer) (int64, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := r.do(ctx, http.MethodGet, "/blobs/"+desc.Digest.String(), header, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	skip := int64(0)
	switch resp.StatusCode {
	case http.StatusOK:
		skip = offset // it knows no ranges
	case http.StatusPartialContent:
		if !strings.HasPrefix(resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(offset, 10)+"-") {
			return 0, &failure{says: fmt.Sprintf("registry %s answers with another part than was asked for", r.domain), class: errdefs.ErrDataLoss}
		}
	default:
		return 0, r.wrongSize(desc, offset)
	}
	if resp.ContentLength >= 0 && resp.ContentLength != desc.Size-offset+skip {
		return 0, r.wrongSize(desc, resp.ContentLength+offset-skip)
	}
	body := r.watch(resp.Body)
	defer body.stop()
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, body, skip); err != nil {
			return 0, r.bodyError(ctx, body, err, 0, desc)
		}
	}
	return r.pour(ctx, w, body, desc, offset)
}

func (r *Repository) wrongSize(desc ocispec.Descriptor, n int64) error {
	return &failure{says: fmt.Sprintf("registry %s has %d bytes of it, its manifest says %d: it was damaged there", r.domain, n, desc.Size), class: errdefs.ErrDataLoss}
}

// pour copies the rest of the blob, and tells an error of reading from one of writing.
func (r *Repository) pour(ctx context.Context, w io.Writer, body *watched, desc ocispec.Descriptor, offset int64) (int64, error) {
	var done int64
	buf := make([]byte, 256<<10)
	for want := desc.Size - offset; done < want; {
		n, err := body.Read(buf[:min(int64(len(buf)), want-done)])
		if n > 0 {
			m, werr := w.Write(buf[:n])
			done += int64(m)
			if werr != nil {
				return done, werr
			}
		}
		if err != nil && done < want {
			return done, r.bodyError(ctx, body, err, offset+done, desc)
		}
	}
	return done, nil
}

func (r *Repository) bodyError(ctx context.Context, body *watched, err error, have int64, desc ocispec.Descriptor) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case body.stop():
		return r.stalledError(have, desc.Size)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &failure{says: fmt.Sprintf("registry %s broke off after %d of %d bytes (%v): try again, what came is kept", r.domain, have, desc.Size, root(err)), class: errdefs.ErrUnavailable, again: true}
}

func (r *Repository) stalledError(have, size int64) error {
	return &failure{says: fmt.Sprintf("registry %s has stalled: less than %d bytes in %v, after %d of %d: try again, what came is kept", r.domain, r.config.StallBytes, r.config.Stall, have, size), class: errdefs.ErrUnavailable, again: true}
}

// watched is an answer's body that is closed when too little comes.
type watched struct {
	body    io.ReadCloser
	n       atomic.Int64
	stalled atomic.Bool
	quit    chan struct{}
	done    chan struct{}
	stopped atomic.Bool
}

// watch begins watching a body. The caller stops it.
func (r *Repository) watch(body io.ReadCloser) *watched {
	w := &watched{body: body, quit: make(chan struct{}), done: make(chan struct{})}
	every, least := r.config.Stall, r.config.StallBytes
	go func() {
		defer close(w.done)
		t := time.NewTicker(every)
		defer t.Stop()
		for last := int64(0); ; {
			select {
			case <-w.quit:
				return
			case <-t.C:
			}
			n := w.n.Load()
			if n-last < least {
				w.stalled.Store(true)
				_ = body.Close() // ends the Read that waits
				return
			}
			last = n
		}
	}()
	return w
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.body.Read(p)
	w.n.Add(int64(n))
	return n, err
}

// stop ends the watch and says whether it found a stall. It may be called again.
func (w *watched) stop() bool {
	if w.stopped.CompareAndSwap(false, true) {
		close(w.quit)
	}
	<-w.done
	return w.stalled.Load()
}
