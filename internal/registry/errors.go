package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	maxErrorBody  = 64 << 10
	maxRetryAfter = 10 * time.Second // a registry that wants a longer pause is told of instead
	maxPause      = 5 * time.Second
)

// failure is an error that says whether trying again may help.
type failure struct {
	says  string
	class error
	again bool
	slow  bool          // it took long to find out: trying once more is enough
	after time.Duration // what the registry asked for
}

func (f *failure) Error() string { return f.says }

// Unwrap is the class and nothing else: what is below may be a deadline, of a connection, and would be taken for the caller's.
func (f *failure) Unwrap() error { return f.class }

// retryAfter says whether, and after what pause, to try again what has been tried a number of times.
func retryAfter(err error, pause time.Duration, tried int) (time.Duration, bool) {
	var f *failure
	if !errors.As(err, &f) || !f.again || f.after > maxRetryAfter || f.slow && tried > 1 {
		return 0, false
	}
	pause = min(pause, maxPause)
	pause = pause/2 + rand.N(pause/2+1) //nolint:gosec // spreading, not secrecy
	return max(pause, f.after), true
}

// reachError words an error of getting to a registry at all.
func (r *Repository) reachError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("registry %s: %w", r.domain, context.Cause(ctx))
	}
	f := &failure{class: errdefs.ErrUnavailable}
	var (
		dns     *net.DNSError
		op      *net.OpError
		cert    *tls.CertificateVerificationError
		denied  *errcode.ErrorResponse
		timeout interface{ Timeout() bool }
	)
	advice := "check the name, the network, or a proxy (HTTPS_PROXY of the daemon)"
	switch {
	case errors.As(err, &denied):
		return r.tokenError(denied)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return &failure{says: fmt.Sprintf("registry %s wants a login: give a user name and password", r.domain), class: errdefs.ErrUnauthenticated}
	case strings.Contains(err.Error(), "bearer realm"):
		return &failure{says: fmt.Sprintf("registry %s sends us to a token service that we do not trust: %v", r.domain, root(err)), class: errdefs.ErrFailedPrecondition}
	case errors.Is(err, http.ErrSchemeMismatch):
		return &failure{says: fmt.Sprintf("registry %s speaks plain HTTP, which is allowed only where the configuration says so (registries.%q plain_http) or with --plain-http", r.domain, r.domain), class: errdefs.ErrFailedPrecondition}
	case errors.As(err, &cert):
		return &failure{says: fmt.Sprintf("registry %s cannot prove who it is: %v: install the certificate of its authority on this machine", r.domain, cert.Err), class: errdefs.ErrFailedPrecondition}
	case errors.As(err, &dns):
		f.says, f.again = fmt.Sprintf("cannot reach registry %s: no address for %s (%s): %s", r.where(), dns.Name, dns.Err, advice), dns.IsTemporary && !dns.IsTimeout
	case errors.As(err, &op) && op.Op == "dial":
		f.says, f.again = fmt.Sprintf("cannot reach registry %s: %v: %s", r.where(), op.Err, advice), !op.Timeout() && !errors.Is(err, syscall.ECONNREFUSED)
	case errors.As(err, &timeout) && timeout.Timeout():
		f.says, f.again, f.slow = fmt.Sprintf("registry %s does not answer: %s", r.where(), advice), true, true
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.ErrUnexpectedEOF):
		f.says, f.again = fmt.Sprintf("registry %s hung up: %s", r.where(), advice), true
	default:
		f.says = fmt.Sprintf("cannot speak to registry %s: %v", r.where(), root(err))
	}
	return f
}

// where names host and port.
func (r *Repository) where() string {
	if _, _, err := net.SplitHostPort(r.host); err == nil {
		return r.host
	}
	return net.JoinHostPort(strings.Trim(r.host, "[]"), "443")
}

// root is what is at the bottom of an error, without the URL in front.
func root(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// tokenError words the refusal of a token service.
func (r *Repository) tokenError(e *errcode.ErrorResponse) error {
	switch {
	case e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden:
		return r.denied(e.Errors)
	case e.StatusCode == http.StatusTooManyRequests || e.StatusCode >= 500:
		return &failure{says: fmt.Sprintf("the token service of registry %s answers %d %s", r.domain, e.StatusCode, http.StatusText(e.StatusCode)), class: errdefs.ErrUnavailable, again: true}
	}
	return &failure{says: fmt.Sprintf("the token service of registry %s answers %d %s", r.domain, e.StatusCode, http.StatusText(e.StatusCode)), class: errdefs.ErrFailedPrecondition}
}

// denied words a refusal. Registries do not tell strangers whether what they may not see exists.
func (r *Repository) denied(errs errcode.Errors) error {
	if r.anon {
		return &failure{says: fmt.Sprintf("registry %s has no image %s for everybody: check the spelling, or log in if it is private", r.domain, r.path), class: errdefs.ErrUnauthenticated}
	}
	says := fmt.Sprintf("registry %s denies access to %s: check the user name, the password and what that user may do", r.domain, r.path)
	if len(errs) > 0 {
		says += " (it says: " + quote(errs.Error()) + ")"
	}
	return &failure{says: says, class: errdefs.ErrPermissionDenied}
}

func quote(s string) string { return fmt.Sprintf("%.200q", s) }

// answerError words an answer that was not wanted, and closes it.
func (r *Repository) answerError(resp *http.Response) error {
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // for words only
	var body struct{ Errors errcode.Errors }
	_ = json.Unmarshal(raw, &body)
	f := &failure{class: errdefs.ErrUnavailable, after: pauseWanted(resp)}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		f.says, f.class = fmt.Sprintf("no such image in registry %s: check the spelling, or log in if it is private", r.domain), errdefs.ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return r.denied(body.Errors)
	case code == http.StatusTooManyRequests:
		f.says, f.class, f.again = fmt.Sprintf("registry %s takes no more requests for now: wait%s, or log in for a higher limit", r.domain, words(f.after)), errdefs.ErrResourceExhausted, true
	case code == http.StatusRequestTimeout, code >= 500 && code != http.StatusNotImplemented:
		f.says, f.again = fmt.Sprintf("registry %s answers %d %s: wait and try again", r.domain, code, http.StatusText(code)), true
	default:
		f.class = errdefs.ErrFailedPrecondition
		f.says = fmt.Sprintf("registry %s answers %d %s: is it a registry?", r.domain, code, http.StatusText(code))
	}
	if len(body.Errors) > 0 && resp.StatusCode != http.StatusNotFound {
		f.says += " (it says: " + quote(body.Errors.Error()) + ")"
	}
	return f
}

// pauseWanted is the answer's Retry-After (RFC 9110, 10.2.3), in seconds or as a date.
func pauseWanted(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return time.Duration(min(n, 86400)) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

func words(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return " " + d.Round(time.Second).String()
}
