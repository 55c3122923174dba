package ocispec

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// HostGateway in place of an address of --add-host means the host, as the container sees it.
const HostGateway = "host-gateway"

// Host is where the host keeps what containers inherit.
type Host struct {
	Etc      string // "/etc"
	Resolved string // the file in which systemd-resolved lists the servers behind its own 127.0.0.53
}

// ThisHost is the usual places.
func ThisHost() Host {
	return Host{Etc: "/etc", Resolved: "/run/systemd/resolve/resolv.conf"}
}

// fallback serves where the host names no server that a container could reach: as Docker, Google's.
var fallback = []string{"8.8.8.8", "8.8.4.4"}

// WriteEtc makes hostname, hosts and resolv.conf in dir. Files that are there are written in place:
// a container may have them mounted.
func WriteEtc(dir string, c *containersv1.Container, h Host) error {
	resolv, err := resolvConf(c.GetSpec(), h)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"hostname": []byte(Hostname(c) + "\n"), "resolv.conf": resolv} {
		if err := writeInPlace(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return WriteHosts(dir, c, h)
}

// WriteHosts writes hosts in dir, in place, with the addresses in c's status.
func WriteHosts(dir string, c *containersv1.Container, h Host) error {
	data, err := hosts(c, h)
	if err != nil {
		return err
	}
	return writeInPlace(filepath.Join(dir, "hosts"), data)
}

// writeInPlace leaves alone what is as it should be: writing costs the disk a journal entry.
func writeInPlace(name string, data []byte) error {
	if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, data) {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	// The umask must not decide whether a user of the container can resolve names.
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

func hosts(c *containersv1.Container, h Host) ([]byte, error) {
	var b bytes.Buffer
	host := c.GetSpec().GetNetworkMode() == containersv1.NetworkMode_NETWORK_MODE_HOST
	if host {
		theirs, err := os.ReadFile(filepath.Join(h.Etc, "hosts"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		b.Write(theirs)
		if len(theirs) > 0 && theirs[len(theirs)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	gateway := "127.0.0.1" // on the host's own network the host is here
	for _, a := range c.GetStatus().GetAddresses() {
		if !host && a.GetGateway() != "" {
			gateway = a.GetGateway()
			break
		}
	}
	for _, x := range c.GetSpec().GetExtraHosts() {
		name, address, _ := strings.Cut(x, ":")
		if address == HostGateway {
			address = gateway
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(address, "[]"), name)
	}
	if host {
		return b.Bytes(), nil
	}
	names := Hostname(c)
	if d := c.GetSpec().GetDomainname(); d != "" {
		names = names + "." + d + " " + names
	}
	for _, a := range c.GetStatus().GetAddresses() {
		address, _, _ := strings.Cut(a.GetAddress(), "/")
		if address != "" {
			fmt.Fprintf(&b, "%s\t%s\n", address, names)
		}
	}
	return b.Bytes(), nil
}

// resolvConf is the host's, without the servers that a network namespace of one's own cannot reach.
func resolvConf(s *containersv1.Spec, h Host) ([]byte, error) {
	theirs, err := os.ReadFile(filepath.Join(h.Etc, "resolv.conf"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	own := s.GetNetworkMode() != containersv1.NetworkMode_NETWORK_MODE_HOST // or another's, which is not the host's
	if !own && len(s.GetDns()) == 0 {
		return theirs, nil
	}
	servers, rest := parseResolv(theirs)
	if own && slices.Equal(servers, []string{"127.0.0.53"}) {
		if behind, err := os.ReadFile(h.Resolved); err == nil {
			servers, rest = parseResolv(behind)
		}
	}
	if own {
		servers = reachable(servers)
	}
	if len(s.GetDns()) > 0 {
		servers = s.GetDns()
	}
	if len(servers) == 0 {
		servers = fallback
	}
	var b bytes.Buffer
	for _, n := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	for _, line := range rest {
		b.WriteString(line + "\n")
	}
	return b.Bytes(), nil
}

// parseResolv splits a resolv.conf(5) into its servers and its other lines, comments dropped.
func parseResolv(data []byte) (servers, rest []string) {
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if f := strings.Fields(line); f[0] == "nameserver" {
			if len(f) > 1 {
				servers = append(servers, f[1])
			}
			continue
		}
		rest = append(rest, line)
	}
	return servers, rest
}

// reachable drops loopback and link-local servers, and those of IPv6 where one of IPv4 is left: the
// default network has no IPv6.
func reachable(servers []string) []string {
	var v4, v6 []string
	for _, s := range servers {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" || a.IsLinkLocalUnicast() && a.Is6():
		case a.Unmap().Is4():
			v4 = append(v4, s)
		default:
			v6 = append(v6, s)
		}
	}
	if len(v4) > 0 {
		return v4
	}
	return v6
}

func checkEtc(s *containersv1.Spec) error {
	for _, x := range s.GetExtraHosts() {
		name, address, ok := strings.Cut(x, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\n#") {
			return invalid("extra host %q: write name:address", x)
		}
		if _, err := netip.ParseAddr(strings.Trim(address, "[]")); err != nil && address != HostGateway {
			return invalid("extra host %q: %q is no address", x, address)
		}
	}
	for _, d := range s.GetDns() {
		if _, err := netip.ParseAddr(d); err != nil {
			return invalid("nameserver %q: it must be an address", d)
		}
	}
	return nil
}
