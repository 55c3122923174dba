package registry

import (
	"context"
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
)

// inside lets a registry of this network send us to a token service of this network.
//
// oras-go refuses token services at private addresses, unless they have the registry's own name: a registry of the world must
// not make us send requests to machines that only we can reach. A registry that is one of those machines itself gains nothing by it, and
// many (GitLab's for one) have their token service on another host beside them. For such a registry the realm it names is shown to oras-go as a
// path of the registry's own, and put back before the request is sent.
type inside struct {
	next   http.RoundTripper
	host   string // of the registry, with its port
	prefix string // of the paths that stand for realms; nobody can guess it

	mu     sync.Mutex
	realms map[string]*url.URL // by path
}

func newInside(next http.RoundTripper, host string) *inside {
	return &inside{next: next, host: host, prefix: "/.gantry-realm-" + rand.Text() + "/", realms: map[string]*url.URL{}}
}

var realmOf = regexp.MustCompile(`(?i)(^\s*Bearer\s.*?\brealm=")([^"]*)(")`)

// RoundTrip implements http.RoundTripper.
func (i *inside) RoundTrip(req *http.Request) (*http.Response, error) {
	if real := i.behind(req.URL); real != nil {
		out := req.Clone(req.Context())
		u := *real
		q := u.Query()
		for k, vs := range req.URL.Query() {
			q[k] = vs
		}
		u.RawQuery = q.Encode()
		out.URL, out.Host = &u, u.Host
		return i.next.RoundTrip(out)
	}
	resp, err := i.next.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || req.URL.Host != i.host {
		return resp, err
	}
	for n, v := range resp.Header["Www-Authenticate"] {
		m := realmOf.FindStringSubmatch(v)
		if m == nil {
			continue
		}
		u, err := url.Parse(m[2])
		if err != nil || !i.allows(req, u) {
			continue // oras-go has its own opinion of it
		}
		resp.Header["Www-Authenticate"][n] = strings.Replace(v, m[0], m[1]+i.disguise(req.URL.Scheme, u)+m[3], 1)
	}
	return resp, nil
}

func (i *inside) behind(u *url.URL) *url.URL {
	if u.Host != i.host {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.realms[u.Path]
}

func (i *inside) disguise(scheme string, realm *url.URL) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	u := url.URL{Scheme: scheme, Host: i.host, Path: i.prefix + url.PathEscape(realm.Host) + realm.Path}
	i.realms[u.Path] = realm
	return u.String()
}

// allows says whether a realm of another name is one that this registry may send us to: both are inside, and TLS is not given up.
func (i *inside) allows(req *http.Request, realm *url.URL) bool {
	if realm.Host == "" || realm.User != nil || strings.EqualFold(realm.Hostname(), req.URL.Hostname()) {
		return false // nothing to allow
	}
	if realm.Scheme != "https" && (realm.Scheme != "http" || req.URL.Scheme == "https") {
		return false
	}
	return within(req.Context(), req.URL.Hostname()) && within(req.Context(), realm.Hostname())
}

var carrier = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// within says whether all addresses of a host are private or this machine's. Link-local ones, where clouds
// keep what they know of a machine, never are.
func within(ctx context.Context, host string) bool {
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return false
	}
	for _, a := range addrs {
		if a = a.Unmap(); !a.IsPrivate() && !a.IsLoopback() && !carrier.Contains(a) {
			return false
		}
	}
	return len(addrs) > 0
}
