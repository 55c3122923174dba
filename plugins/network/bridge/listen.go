package bridge

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// bindLimit is how many ports are tried one by one; for more, the kernel's list is read once.
const bindLimit = 64

// listening refuses a port on which a process of the host listens: the rules would take its callers away unseen.
func listening(p port) error {
	if int(p.last)-int(p.first) >= bindLimit {
		for _, s := range sockets(p) {
			if s.listens {
				return inUse(p, s)
			}
		}
		return nil
	}
	for n := int(p.first); n <= int(p.last); n++ {
		one := p
		one.first, one.last = uint16(n), uint16(n) //nolint:gosec // between two ports
		switch err := bind(one); {
		case errors.Is(err, unix.EADDRINUSE):
			found := append(sockets(one), socket{})
			return inUse(one, found[0])
		case errors.Is(err, unix.EADDRNOTAVAIL):
			return fmt.Errorf("port %s: this host has no such address: %w", one, errdefs.ErrInvalidArgument)
		case err != nil:
			return fmt.Errorf("try port %s: %w", one, err)
		}
	}
	return nil
}

func inUse(p port, s socket) error {
	if pid, program := process(s.inode); pid != 0 {
		return fmt.Errorf("port %s is in use by %s (pid %d) on the host: %w", p, program, pid, errdefs.ErrAlreadyExists)
	}
	return fmt.Errorf("port %s is in use on the host: %w", p, errdefs.ErrAlreadyExists)
}

// bind takes the port for an instant, as a server would.
func bind(p port) error {
	typ := unix.SOCK_DGRAM
	if p.protocol == unix.IPPROTO_TCP {
		typ = unix.SOCK_STREAM
	}
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was sent
	if p.protocol == unix.IPPROTO_TCP {
		// Connections that have ended may linger on the port; only a listener is in the way.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	sa := &unix.SockaddrInet4{Port: int(p.first)}
	if p.host.IsValid() {
		sa.Addr = p.host.As4()
	}
	return unix.Bind(fd, sa)
}

// socket is a line of /proc/net/tcp and its kin.
type socket struct {
	local   netip.AddrPort
	listens bool // or is bound, for UDP
	inode   uint64
}

// sockets returns the host's sockets that hold a port of p, those that listen first.
func sockets(p port) (found []socket) {
	var rest []socket
	name := protocolName(p.protocol)
	for _, file := range []string{name, name + "6"} {
		f, err := os.Open("/proc/thread-self/net/" + file)
		if err != nil {
			continue // no such family
		}
		for _, s := range parseSockets(f, name == "udp") {
			q := port{protocol: p.protocol, host: s.local.Addr(), first: s.local.Port(), last: s.local.Port()}
			if q.host.IsUnspecified() {
				q.host = netip.Addr{}
			}
			switch {
			case !q.overlaps(p):
			case s.listens:
				found = append(found, s)
			default:
				rest = append(rest, s)
			}
		}
		_ = f.Close()
	}
	return append(found, rest...)
}

// parseSockets reads the form of proc_net_tcp(5): local address in field 1, state in 3, inode in 9.
func parseSockets(r io.Reader, udp bool) (all []socket) {
	for sc := bufio.NewScanner(r); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) < 10 {
			continue
		}
		local, ok := parseLocal(f[1])
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if !ok || err != nil {
			continue
		}
		const listen = "0A" // TCP_LISTEN
		all = append(all, socket{local, f[3] == listen || udp && f[3] == "07", inode})
	}
	return all
}

// parseLocal reads an address as the kernel prints it: words of 32 bits in the machine's byte order.
func parseLocal(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || perr != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, false
	}
	var b []byte
	for len(raw) > 0 {
		b = binary.NativeEndian.AppendUint32(b, binary.BigEndian.Uint32(raw))
		raw = raw[4:]
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}

// process finds who has a socket open; 0 if nobody can be found.
func process(inode uint64) (pid int, program string) {
	if inode == 0 {
		return 0, ""
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			if to, _ := os.Readlink(dir + "/fd/" + fd.Name()); to == want {
				name, _ := os.ReadFile(dir + "/comm") //nolint:gosec // below /proc
				pid, _ := strconv.Atoi(filepath.Base(dir))
				return pid, string(bytes.TrimSpace(name))
			}
		}
	}
	return 0, ""
}
