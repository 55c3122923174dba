package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParse(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"debian":                   "docker.io/library/debian:latest",
		"debian:12":                "docker.io/library/debian:12",
		"user/app":                 "docker.io/user/app:latest",
		"index.docker.io/user/app": "docker.io/user/app:latest",
		"localhost/app":            "localhost/app:latest",
		"localhost:5000/a/b/c:x":   "localhost:5000/a/b/c:x",
		"[::1]:5000/app":           "[::1]:5000/app:latest",
		"reg.example/app@" + d:     "reg.example/app@" + d,
		"reg.example/app:tag@" + d: "reg.example/app@" + d,
		"":                         "", "UPPER": "", "a b": "", "app:": "", "app@sha256:1": "", "../x": "", strings.Repeat("x", 300): "",
	} {
		got, err := Parse(in)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v, %v", in, got, err)
			}
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"debian", "a/b:c", "localhost:1/x@sha256:0", "[::1]:5/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ref, err := Parse(s); err == nil {
			if again, err := Parse(ref.String()); err != nil || again.String() != ref.String() {
				t.Fatalf("%q is %q is %v (%v)", s, ref, again, err)
			}
		}
	})
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1": true, "127.9.9.9:5000": true, "[::1]:5000": true, "[::1]": true, "[::ffff:127.0.0.1]:5": true,
		"localhost.example": false, "127.0.0.1.example": false, "10.0.0.1:5000": false, "docker.io": false, "0.0.0.0": false,
	} {
		if loopback(host) != want {
			t.Error(host)
		}
	}
}

// quick is a configuration for tests: everything that waits, waits little.
func quick() Config {
	return Config{Connect: 2 * time.Second, Answer: 300 * time.Millisecond, Stall: 100 * time.Millisecond, StallBytes: 64, Tries: 3, Pause: time.Millisecond}
}

func repository(t *testing.T, c *Client, ref string, o Options) *Repository {
	t.Helper()
	t.Cleanup(c.Close)
	named, err := Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	return c.Repository(named, o)
}

var (
	config   = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`)
	layer    = bytes.Repeat([]byte("layer "), 10_000)
	manifest = mustJSON(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: describe(config), Layers: []ocispec.Descriptor{describe(layer)}})
)

func mustJSON(m ocispec.Manifest) []byte {
	m.SchemaVersion = 2
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return raw
}

func describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// honest is a registry with one image; what it does can be replaced by path.
func honest(t *testing.T, replace map[string]http.HandlerFunc) (host string) {
	t.Helper()
	mux := http.NewServeMux()
	m := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(manifest))
	}
	handlers := map[string]http.HandlerFunc{
		"/v2/app/manifests/latest":                                 m,
		"/v2/app/manifests/" + digest.FromBytes(manifest).String(): m,
		"/v2/app/blobs/" + digest.FromBytes(config).String(): func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(config))
		},
		"/v2/app/blobs/" + digest.FromBytes(layer).String(): func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layer))
		},
	}
	for p, h := range replace {
		handlers[p] = h
	}
	for p, h := range handlers {
		mux.HandleFunc(p, h)
	}
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

const (
	latest = "/v2/app/manifests/latest"
)

var layerPath = "/v2/app/blobs/" + digest.FromBytes(layer).String()

// all does what a pull does.
func all(ctx context.Context, r *Repository) error {
	desc, err := r.Resolve(ctx)
	if err != nil {
		return err
	}
	raw, err := r.Manifest(ctx, desc)
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return err
	}
	if _, err := r.Config(ctx, m.Config); err != nil {
		return err
	}
	for _, l := range m.Layers {
		h := sha256.New()
		if err := r.Fetch(ctx, l, 0, h); err != nil {
			return err
		}
		if got := digest.NewDigest(digest.SHA256, h); got != l.Digest {
			return fmt.Errorf("layer is %s: %w", got, errdefs.ErrDataLoss)
		}
	}
	return nil
}

// TestStrangers: what registries do wrong, and what is said of it.
func TestStrangers(t *testing.T) {
	answer := func(code int, head map[string]string, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range head {
				w.Header().Set(k, v)
			}
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	typed := map[string]string{"Content-Type": ocispec.MediaTypeImageManifest}
	var flaky, limited, cut atomic.Int32
	part := func(n int) http.HandlerFunc { // sends n bytes of the layer and hangs up
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(layer)))
			_, _ = w.Write(layer[:n])
		}
	}
	for name, c := range map[string]struct {
		replace map[string]http.HandlerFunc
		is      func(error) bool
		says    string
	}{
		"honest":          {},
		"unknown image":   {map[string]http.HandlerFunc{latest: http.NotFound}, errdefs.IsNotFound, "no such image in registry"},
		"denied":          {map[string]http.HandlerFunc{latest: answer(403, nil, "")}, errdefs.IsUnauthorized, "log in if it is private"},
		"HTML":            {map[string]http.HandlerFunc{latest: answer(200, map[string]string{"Content-Type": "text/html"}, "<html>log in</html>")}, errdefs.IsFailedPrecondition, "text/html where a manifest was expected"},
		"not JSON":        {map[string]http.HandlerFunc{latest: answer(200, typed, "<html>")}, errdefs.IsInvalidArgument, "not well formed"},
		"teapot":          {map[string]http.HandlerFunc{latest: answer(418, nil, "")}, errdefs.IsFailedPrecondition, "418"},
		"schema 1":        {map[string]http.HandlerFunc{latest: answer(200, map[string]string{"Content-Type": DockerSchema1Signed}, "{}")}, errdefs.IsNotImplemented, "schema 1"},
		"schema 1 inside": {map[string]http.HandlerFunc{latest: answer(200, nil, `{"schemaVersion":1,"fsLayers":[]}`)}, errdefs.IsNotImplemented, "schema 1"},
		"two-faced":       {map[string]http.HandlerFunc{latest: answer(200, nil, `{"schemaVersion":2,"manifests":[],"layers":[]}`)}, errdefs.IsInvalidArgument, "at once"},
		"another kind":    {map[string]http.HandlerFunc{latest: answer(200, nil, `{"schemaVersion":2,"mediaType":"application/x"}`)}, errdefs.IsInvalidArgument, "no image's"},
		"misannounced":    {map[string]http.HandlerFunc{latest: answer(200, map[string]string{"Content-Type": DockerList}, string(manifest))}, errdefs.IsInvalidArgument, "announced as"},
		"no content type": {map[string]http.HandlerFunc{latest: answer(200, map[string]string{"Content-Type": "application/json"}, string(manifest))}, nil, ""},
		"huge manifest":   {map[string]http.HandlerFunc{latest: answer(200, typed, strings.Repeat(" ", MaxManifest+1))}, errdefs.IsInvalidArgument, "at most 4194304"},
		"endless manifest": {map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil || r.Method == http.MethodHead {
					return
				}
			}
		}}, errdefs.IsInvalidArgument, "at most 4194304"},
		"tampered manifest": {map[string]http.HandlerFunc{"/v2/app/manifests/" + digest.FromBytes(manifest).String(): answer(200, typed, strings.Replace(string(manifest), "octet", "octes", 1))}, errdefs.IsDataLoss, "changed on its way"},
		"no HEAD": {map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(405)
				return
			}
			answer(200, typed, string(manifest))(w, r)
		}}, nil, ""},
		"fails twice": {map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, r *http.Request) {
			if flaky.Add(1) <= 2 {
				w.WriteHeader(503)
				return
			}
			answer(200, typed, string(manifest))(w, r)
		}}, nil, ""},
		"fails always": {map[string]http.HandlerFunc{latest: answer(503, nil, "")}, errdefs.IsUnavailable, "503"},
		"silent":       {map[string]http.HandlerFunc{latest: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }}, errdefs.IsUnavailable, "does not answer"},
		"limits": {map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, _ *http.Request) {
			limited.Add(1)
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
		}}, errdefs.IsResourceExhausted, "wait 1h0m0s"},
		"tampered layer":  {map[string]http.HandlerFunc{layerPath: answer(200, nil, strings.Replace(string(layer), "layer", "lawyr", 1))}, errdefs.IsDataLoss, "layer is sha256"},
		"shorter layer":   {map[string]http.HandlerFunc{layerPath: answer(200, map[string]string{"Content-Length": "6"}, "layer ")}, errdefs.IsDataLoss, "it was damaged there"},
		"longer layer":    {map[string]http.HandlerFunc{layerPath: answer(200, map[string]string{"Content-Length": "70000"}, strings.Repeat("x", 70000))}, errdefs.IsDataLoss, "it was damaged there"},
		"missing layer":   {map[string]http.HandlerFunc{layerPath: http.NotFound}, errdefs.IsNotFound, "no such"},
		"layer cut short": {map[string]http.HandlerFunc{layerPath: part(1000)}, errdefs.IsUnavailable, "broke off after"},
		"layer in pieces": {map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, r *http.Request) {
			if cut.Add(1) == 1 {
				part(30_000)(w, r)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layer))
		}}, nil, ""},
		"layer drips": {map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				_, _ = w.Write(layer[i : i+1])
				_ = http.NewResponseController(w).Flush()
				time.Sleep(5 * time.Millisecond) // this is what it is about
			}
		}}, errdefs.IsUnavailable, "has stalled"},
		"endless layer": {map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(layer); err != nil {
					return
				}
			}
		}}, nil, ""}, // no more than announced is read
		"wrong range": {map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" {
				part(1000)(w, r)
				return
			}
			w.Header().Set("Content-Range", "bytes 0-10/60000")
			w.WriteHeader(206)
		}}, errdefs.IsDataLoss, "another part"},
		"redirect loop": {map[string]http.HandlerFunc{latest: http.RedirectHandler(latest, http.StatusTemporaryRedirect).ServeHTTP}, errdefs.IsUnavailable, "redirected ten times"},
		"redirect": {map[string]http.HandlerFunc{
			layerPath: http.RedirectHandler("/elsewhere", http.StatusTemporaryRedirect).ServeHTTP,
			"/elsewhere": func(w http.ResponseWriter, r *http.Request) {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(layer))
			},
		}, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := honest(t, c.replace)
			err := all(t.Context(), repository(t, New(quick()), host+"/app", Options{}))
			if c.is == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Fatal(err)
			}
			if errdefs.IsDeadlineExceeded(err) || errdefs.IsCanceled(err) {
				t.Error("it would be taken for the caller's own deadline:", err)
			}
			if (errdefs.IsUnavailable(err) || errdefs.IsNotFound(err)) && !strings.Contains(err.Error(), host) {
				t.Error("it does not name the registry:", err)
			}
		})
	}
	t.Cleanup(func() {
		if limited.Load() != 1 {
			t.Errorf("a registry that wants an hour's pause was asked %d times", limited.Load())
		}
	})
}

func TestResumeWithoutRanges(t *testing.T) {
	host := honest(t, map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(layer) }})
	var b buffer
	if err := repository(t, New(quick()), host+"/app", Options{}).Fetch(t.Context(), describe(layer), 12_345, &b); err != nil || !bytes.Equal(b, layer[12_345:]) {
		t.Fatal(len(b), err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	begin := time.Now()
	_, err = repository(t, New(quick()), host+"/app", Options{}).Resolve(t.Context())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "check the name, the network, or a proxy") {
		t.Fatal(err)
	}
	if time.Since(begin) > time.Second {
		t.Error("it took", time.Since(begin))
	}
	_, err = repository(t, New(quick()), "no-such-host.invalid/app", Options{}).Resolve(t.Context())
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no-such-host.invalid:443") {
		t.Fatal(err)
	}
}

// TestSlowDNS: a resolver that does not answer is asked once, and its deadline is not the caller's.
func TestSlowDNS(t *testing.T) {
	c, asked := New(quick()), 0
	c.http.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		asked++
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "i/o timeout", Name: "registry.test", IsTimeout: true, IsTemporary: true, UnwrapErr: context.DeadlineExceeded}}
	}
	_, err := repository(t, c, "registry.test/app", Options{}).Resolve(t.Context())
	if !errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "no address for registry.test") || asked != 1 {
		t.Fatal(asked, err)
	}
}

func TestCancel(t *testing.T) {
	host := honest(t, map[string]http.HandlerFunc{layerPath: func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(layer[:100])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}})
	boom := errors.New("boom")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := quick()
	c.Stall = time.Hour
	var b waker
	b.fn = func() { cancel(boom) }
	if err := repository(t, New(c), host+"/app", Options{}).Fetch(ctx, describe(layer), 0, &b); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

type waker struct{ fn func() }

func (w *waker) Write(p []byte) (int, error) { w.fn(); return len(p), nil }

// TestTLS: plain HTTP only where it is allowed, TLS wherever it is spoken, and never a step down.
func TestTLS(t *testing.T) {
	if err := plainElsewhere(t, Config{}, Options{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "plain_http") {
		t.Error("not allowed:", err)
	}
	if err := plainElsewhere(t, Config{}, Options{PlainHTTP: true}); err != nil {
		t.Error("allowed once:", err)
	}
	if err := plainElsewhere(t, Config{Hosts: map[string]Host{"registry.test:5000": {PlainHTTP: true}}}, Options{}); err != nil {
		t.Error("configured:", err)
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	_, err := repository(t, New(quick()), host+"/app", Options{}).Resolve(t.Context())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot prove who it is") {
		t.Error("unknown authority:", err)
	}
	c := New(quick())
	c.http.Transport.(*http.Transport).TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig
	if _, err := repository(t, c, host+"/app", Options{}).Resolve(t.Context()); err == nil || !strings.Contains(err.Error(), "not protected") {
		t.Error("redirected to plain text:", err)
	}
}

// plainElsewhere asks a plain registry that is not on loopback, as far as names go.
func plainElsewhere(t *testing.T, config Config, o Options) error {
	host := honest(t, nil)
	q := quick()
	q.Hosts = config.Hosts
	c := New(q)
	c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, host)
	}
	return all(t.Context(), repository(t, c, "registry.test:5000/app", o))
}

func TestBasic(t *testing.T) {
	host := honest(t, map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		_, _ = w.Write(manifest)
	}})
	for _, c := range []struct {
		auth Auth
		is   func(error) bool
		says string
	}{
		{Auth{}, errdefs.IsUnauthorized, "wants a login"},
		{Auth{Username: "me", Password: "wrong"}, errdefs.IsPermissionDenied, "denies access"},
		{Auth{Username: "me", Password: "secret"}, nil, ""},
	} {
		_, err := repository(t, New(quick()), host+"/app", Options{Auth: c.auth}).Resolve(t.Context())
		if c.is == nil && err != nil || c.is != nil && (!c.is(err) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v: %v", c.auth.Password, err)
		}
		if err != nil && strings.Contains(err.Error(), "wrong") {
			t.Error("the password is in the error:", err)
		}
	}
}

// TestToken: anonymous and authenticated tokens, and what a token service refuses.
func TestToken(t *testing.T) {
	var host string
	host = honest(t, map[string]http.HandlerFunc{
		latest: func(w http.ResponseWriter, r *http.Request) {
			if got := r.Header.Get("Authorization"); got != "Bearer good" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+host+`/token",service="registry",scope="repository:app:pull"`)
				w.WriteHeader(401)
				return
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = w.Write(manifest)
		},
		"/token": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost { // OAuth2
				if r.FormValue("refresh_token") == "identity" && strings.Contains(r.FormValue("scope"), "repository:app:pull") {
					_, _ = w.Write([]byte(`{"access_token":"good"}`))
					return
				}
				w.WriteHeader(401)
				return
			}
			u, p, ok := r.BasicAuth()
			switch {
			case r.URL.Query().Get("service") != "registry" || !strings.Contains(r.URL.Query().Get("scope"), "repository:app:pull"):
				w.WriteHeader(400)
			case !ok && r.URL.Query().Get("anonymous") == "", u == "me" && p == "secret":
				_, _ = w.Write([]byte(`{"token":"good"}`))
			default:
				w.WriteHeader(401)
			}
		},
	})
	for _, c := range []struct {
		auth Auth
		is   func(error) bool
	}{
		{Auth{}, nil},
		{Auth{Username: "me", Password: "secret"}, nil},
		{Auth{IdentityToken: "identity"}, nil},
		{Auth{Username: "me", Password: "wrong"}, errdefs.IsPermissionDenied},
		{Auth{IdentityToken: "stolen"}, errdefs.IsPermissionDenied},
	} {
		_, err := repository(t, New(quick()), host+"/app", Options{Auth: c.auth}).Resolve(t.Context())
		if c.is == nil && err != nil || c.is != nil && !c.is(err) {
			t.Errorf("%+v: %v", c.auth, err)
		}
	}
}

// TestTokenServiceInside: a registry of this network may have its token service on another host of this network, which oras-go would
// refuse; one that is outside may not send us in here.
func TestTokenServiceInside(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/jwt/auth" || r.URL.Query().Get("fixed") != "1" || r.URL.Query().Get("service") != "registry" || !strings.HasPrefix(r.Host, "localhost:") {
			w.WriteHeader(400)
			return
		}
		if u, p, ok := r.BasicAuth(); ok && (u != "me" || p != "secret") {
			w.WriteHeader(401)
			return
		}
		_, _ = w.Write([]byte(`{"token":"good"}`))
	}))
	t.Cleanup(service.Close)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(service.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	host := honest(t, map[string]http.HandlerFunc{latest: func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://localhost:`+port+`/jwt/auth?fixed=1",service="registry",scope="repository:app:pull"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		_, _ = w.Write(manifest)
	}})
	for _, a := range []Auth{{}, {Username: "me", Password: "secret"}} {
		if _, err := repository(t, New(quick()), host+"/app", Options{Auth: a}).Resolve(t.Context()); err != nil {
			t.Errorf("%v: %v", a.Username, err)
		}
	}
	if _, err := repository(t, New(quick()), host+"/app", Options{Auth: Auth{Username: "me", Password: "wrong"}}).Resolve(t.Context()); !errdefs.IsPermissionDenied(err) {
		t.Error(err)
	}
	c := New(quick())
	c.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, host)
	}
	r := repository(t, c, "8.8.8.8:5000/app", Options{PlainHTTP: true})
	if _, err := r.Resolve(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "token service that we do not trust") {
		t.Error("from outside:", err)
	}
}

// TestRegistry speaks to the distribution project's own registry.
func TestRegistry(t *testing.T) {
	for _, tool := range []string{"docker-registry", "skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf(`no %s: "make setup" installs it`, tool)
		}
	}
	host := serve(t)
	layout := filepath.Join(t.TempDir(), "img")
	run(t, "umoci", "init", "--layout", layout)
	run(t, "umoci", "new", "--image", layout+":x")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, bytes.Repeat([]byte("content"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "umoci", "insert", "--image", layout+":x", file, "/f")
	run(t, "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "oci:"+layout+":x", "docker://"+host+"/team/app:1")
	run(t, "skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "--format=v2s2", "oci:"+layout+":x", "docker://"+host+"/team/app:docker")
	for tag, want := range map[string]string{"1": ocispec.MediaTypeImageManifest, "docker": DockerManifest} {
		r := repository(t, New(quick()), host+"/team/app:"+tag, Options{})
		desc, err := r.Resolve(t.Context())
		if err != nil || desc.MediaType != want {
			t.Fatal(desc, err)
		}
		if err := all(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if err := all(t.Context(), repository(t, New(quick()), host+"/team/app@"+desc.Digest.String(), Options{})); err != nil {
			t.Fatal("by digest:", err)
		}
	}
	for ref, says := range map[string]string{"/team/app:2": "no such image", "/nobody/app:1": "no such image", "/team/app@" + digest.FromString("x").String(): "no such image"} {
		if _, err := repository(t, New(quick()), host+ref, Options{}).Resolve(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), says) {
			t.Error(ref, err)
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// serve starts a registry and returns its address.
func serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", dir, host), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", host); err == nil {
			c.Close()
			return host
		}
		if time.Now().After(deadline) {
			t.Fatal("the registry does not start")
		}
	}
}
