// Package registry fetches images by the distribution protocol
// (https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md).
//
// A registry is a stranger: whatever it sends is bounded in size and time and checked against the digest that was asked for.
// Authentication (anonymous, basic, tokens) is oras-go's. HTTP without TLS is spoken only to loopback and to
// registries that the configuration, or the user, allows it for, and only if they do not speak TLS.
package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Host is what is known of one registry.
type Host struct {
	PlainHTTP bool // it may be spoken to without TLS
}

// Config says how to reach registries. Zero durations and counts mean the defaults.
type Config struct {
	Hosts     map[string]Host // by the domain of references, "registry.example:5000"
	UserAgent string
	// Connect bounds connecting and the TLS handshake, Answer waiting for the head of an answer.
	Connect, Answer time.Duration
	// Stall is how long a transfer may bring less than StallBytes before it is begun again.
	Stall      time.Duration
	StallBytes int64
	// Tries is how often a request, or a transfer that makes no progress, is tried; Pause is how long to wait before the second
	// try (it doubles).
	Tries int
	Pause time.Duration
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Connect, 10*time.Second)
	def(&c.Answer, 30*time.Second)
	def(&c.Stall, 30*time.Second)
	def(&c.Pause, 200*time.Millisecond)
	if c.StallBytes == 0 {
		c.StallBytes = 4 << 10
	}
	if c.Tries == 0 {
		c.Tries = 4
	}
	if c.UserAgent == "" {
		c.UserAgent = "gantry"
	}
	return c
}

// Client speaks to registries. It is safe for use by many.
type Client struct {
	http *http.Client

	mu      sync.Mutex
	config  Config
	schemes map[string]string // by host: what it was found to speak
}

// New returns a client.
func New(c Config) *Client {
	c = c.withDefaults()
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: c.Connect, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   c.Connect,
		ResponseHeaderTimeout: c.Answer,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       60 * time.Second,
		DisableCompression:    true, // blobs are compressed already, and digests are of what travels
		WriteBufferSize:       4 << 10,
		ReadBufferSize:        256 << 10,
	}
	return &Client{config: c, schemes: map[string]string{}, http: &http.Client{Transport: t, CheckRedirect: checkRedirect}}
}

// checkRedirect follows redirects, as registries use them to send us to where content is stored, but never from TLS to plain text.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("redirected ten times")
	}
	if req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
		return fmt.Errorf("redirected from TLS to %s, which is not protected", req.URL.Host)
	}
	return nil
}

// Configure replaces what is known of registries. Requests under way keep what they began with.
func (c *Client) Configure(hosts map[string]Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config.Hosts = hosts
	clear(c.schemes)
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Auth is how to answer a registry that asks who is there. The zero value is nobody.
type Auth struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token
}

func (a Auth) credential() auth.Credential {
	return auth.Credential{Username: a.Username, Password: a.Password, RefreshToken: a.IdentityToken}
}

func (a Auth) anonymous() bool { return a == Auth{} }

// Parse reads a reference as Docker's users write it: "debian" is docker.io/library/debian:latest. A name with a tag and
// a digest keeps the digest only, as Docker has it.
func Parse(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image name %.200q: %w: write [registry/]name[:tag|@digest]: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// Repository is one repository of a registry, for one pull.
type Repository struct {
	c      *Client
	config Config
	ref    reference.Named
	domain string // as people write it
	host   string // as it is connected to
	path   string
	plain  bool // plain HTTP is allowed
	auth   *auth.Client
	anon   bool
}

// Options of one pull.
type Options struct {
	Auth      Auth
	PlainHTTP bool // allow it for this registry, this once
}

// Repository returns the repository that ref names. Tokens are kept for as long as it lives, and for nobody else.
func (c *Client) Repository(ref reference.Named, o Options) *Repository {
	c.mu.Lock()
	config := c.config
	c.mu.Unlock()
	r := &Repository{c: c, config: config, ref: ref, domain: reference.Domain(ref), path: reference.Path(ref), anon: o.Auth.anonymous()}
	r.host = r.domain
	if r.domain == "docker.io" {
		r.host = "registry-1.docker.io"
	}
	r.plain = o.PlainHTTP || config.Hosts[r.domain].PlainHTTP || loopback(r.host)
	client := *c.http
	client.Transport = newInside(c.http.Transport, r.host)
	r.auth = &auth.Client{
		Client: &client, Cache: auth.NewCache(), ClientID: "gantry",
		Header:     http.Header{"User-Agent": {config.UserAgent}},
		Credential: auth.StaticCredential(r.domain, o.Auth.credential()),
	}
	return r
}

// loopback says whether a host, with or without a port, is this machine.
func loopback(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}

// schemesFor lists what to try, in order.
func (r *Repository) schemesFor() []string {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if s, ok := r.c.schemes[r.host]; ok && (s == "https" || r.plain) {
		return []string{s}
	}
	if r.plain {
		return []string{"https", "http"}
	}
	return []string{"https"}
}

func (r *Repository) speaks(scheme string) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.schemes[r.host] = scheme
}

// once sends one request, with whichever scheme the registry speaks.
func (r *Repository) once(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	ctx = auth.WithScopesForHost(ctx, r.host, auth.ScopeRepository(r.path, auth.ActionPull))
	var first error
	for _, scheme := range r.schemesFor() {
		req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+r.host+"/v2/"+r.path+path, nil)
		if err != nil {
			return nil, fmt.Errorf("image name %s: %w: %w", r.ref, err, errdefs.ErrInvalidArgument)
		}
		req.Header = header.Clone()
		resp, err := r.auth.Do(req)
		if err == nil {
			r.speaks(scheme)
			return resp, nil
		}
		if first == nil || errors.Is(first, http.ErrSchemeMismatch) { // what its right scheme says counts
			first = err
		}
		if ctx.Err() != nil || scheme == "https" && !r.otherwise(err) {
			break
		}
	}
	return nil, first
}

// otherwise says whether a registry that could not be reached by TLS may be reached without.
func (r *Repository) otherwise(err error) bool {
	if errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	var op *net.OpError
	_, _, noPort := net.SplitHostPort(r.host)
	return noPort != nil && errors.As(err, &op) && op.Op == "dial" // nobody at 443, perhaps at 80
}

// do sends a request, again where that may help, and returns an answer of one of the statuses that are wanted.
func (r *Repository) do(ctx context.Context, method, path string, header http.Header, want ...int) (*http.Response, error) {
	pause := r.config.Pause
	for try := 1; ; try++ {
		resp, err := r.once(ctx, method, path, header)
		if err == nil {
			for _, w := range want {
				if resp.StatusCode == w {
					return resp, nil
				}
			}
			err = r.answerError(resp)
		} else {
			err = r.reachError(ctx, err)
		}
		wait, again := retryAfter(err, pause, try)
		if !again || try >= r.config.Tries {
			return nil, err
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		pause *= 2
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
