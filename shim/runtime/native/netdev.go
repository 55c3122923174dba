package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// asksDevices is what a child says when it is in its network namespace, and devices may come.
const asksDevices = -7

// maxName is the longest name of a network device (IFNAMSIZ, without its end).
const maxName = unix.IFNAMSIZ - 1

// supportedDevices checks what config.json says about network devices.
func supportedDevices(l *specs.Linux) error {
	for _, name := range sorted(l.NetDevices) {
		for _, n := range []string{name, l.NetDevices[name].Name} {
			if len(n) > maxName || strings.ContainsAny(n, "/ \t\n\x00:") || n == "." || n == ".." || name == "" {
				return invalid("linux.netDevices: %q: no name of a device", n)
			}
		}
		if strings.Contains(name, "%") {
			return invalid("linux.netDevices: %q: no name of a device", name)
		}
	}
	return nil
}

// netDevices has the parent move devices of the host's to the child's network namespace.
func (b *builder) netDevices(devices map[string]specs.LinuxNetDevice, ns *namespaces) error {
	if len(devices) == 0 {
		return nil
	}
	if !ns.has[specs.NetworkNamespace] {
		return invalid("linux.netDevices: the container shares the host's network, and has them already")
	}
	b.say("wait for network devices")
	b.ask(asksDevices, func(_ context.Context, c child) error {
		fd, err := openNamespace(specs.NetworkNamespace, unix.CLONE_NEWNET, "/proc/"+strconv.Itoa(c.pid)+"/ns/net")
		if err != nil {
			return err
		}
		defer unix.Close(fd) //nolint:errcheck // it was only named
		for _, name := range sorted(devices) {
			if err := moveDevice(name, devices[name].Name, fd); err != nil {
				return fmt.Errorf("linux.netDevices: move %s: %w", name, err)
			}
		}
		return nil
	})
	return nil
}

// moveDevice moves a device, under another name if to is one, with its addresses, and brings it up. The
// kernel takes its addresses away on the way, and keeps the rest.
func moveDevice(name, to string, netns int) error {
	here, err := dialRoute(-1)
	if err != nil {
		return err
	}
	defer here.close()
	there, err := dialRoute(netns)
	if err != nil {
		return err
	}
	defer there.close()
	index, err := here.device(name)
	if err != nil {
		return err
	}
	if to == "" {
		to = name
	}
	if !strings.Contains(to, "%") {
		if _, err := there.device(to); err == nil {
			return fmt.Errorf("the container has a device %s: %w", to, errdefs.ErrAlreadyExists)
		} else if !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	addresses, err := here.addresses(index)
	if err != nil {
		return err
	}
	before, err := there.devices()
	if err != nil {
		return err
	}
	move := attribute32(nil, unix.IFLA_NET_NS_FD, uint32(netns))
	move = attributeBytes(move, unix.IFLA_IFNAME, append([]byte(to), 0))
	if _, err := here.request(unix.RTM_NEWLINK, 0, append(linkMessage(index, 0, 0), move...)); err != nil {
		return err
	}
	moved, err := there.found(to, before)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if _, err := there.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, a.message(moved)); err != nil {
			return fmt.Errorf("keep address: %w", err)
		}
	}
	if _, err := there.request(unix.RTM_NEWLINK, 0, linkMessage(moved, unix.IFF_UP, unix.IFF_UP)); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// route is a socket to the kernel's network configuration (rtnetlink(7)).
type route struct {
	fd  int
	seq uint32
}

// dialRoute opens one in a network namespace; -1 is this process's.
func dialRoute(netns int) (r *route, err error) {
	open := func() {
		var fd int
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		r = &route{fd: fd}
	}
	if netns < 0 {
		open()
	} else {
		onThread(func() {
			if err = unix.Setns(netns, unix.CLONE_NEWNET); err == nil {
				open()
			}
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return r, nil
}

func (r *route) close() { _ = unix.Close(r.fd) }

// request sends a message and answers what comes back; an error is the kernel's.
func (r *route) request(kind uint16, flags uint16, payload []byte) ([]syscall.NetlinkMessage, error) {
	r.seq++
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = binary.NativeEndian.AppendUint32(m, r.seq)
	m = binary.NativeEndian.AppendUint32(m, 0)
	if err := unix.Sendto(r.fd, append(m, payload...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []syscall.NetlinkMessage
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			switch {
			case m.Header.Seq != r.seq:
			case m.Header.Type == unix.NLMSG_DONE:
				return out, nil
			case m.Header.Type == unix.NLMSG_ERROR:
				if errno := -int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
					return nil, unix.Errno(errno)
				}
				return out, nil
			default:
				m.Data = bytes.Clone(m.Data)
				out = append(out, m)
			}
		}
	}
}

// linkMessage is struct ifinfomsg.
func linkMessage(index int32, flags, change uint32) []byte {
	m := make([]byte, 4, unix.SizeofIfInfomsg)
	m = binary.NativeEndian.AppendUint32(m, uint32(index))
	m = binary.NativeEndian.AppendUint32(m, flags)
	return binary.NativeEndian.AppendUint32(m, change)
}

func attributeBytes(m []byte, kind uint16, value []byte) []byte {
	m = binary.NativeEndian.AppendUint16(m, uint16(unix.SizeofRtAttr+len(value)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = append(m, value...)
	for len(m)%unix.NLMSG_ALIGNTO != 0 {
		m = append(m, 0)
	}
	return m
}

func attribute32(m []byte, kind uint16, value uint32) []byte {
	return attributeBytes(m, kind, binary.NativeEndian.AppendUint32(nil, value))
}

// device is a device's number by its name; ENODEV: there is none.
func (r *route) device(name string) (index int32, err error) {
	list, err := r.request(unix.RTM_GETLINK, 0, append(linkMessage(0, 0, 0), attributeBytes(nil, unix.IFLA_IFNAME, append([]byte(name), 0))...))
	if err != nil {
		return 0, err
	}
	if len(list) != 1 || len(list[0].Data) < unix.SizeofIfInfomsg {
		return 0, unix.ENODEV
	}
	return int32(binary.NativeEndian.Uint32(list[0].Data[4:])), nil
}

// devices are the numbers of all.
func (r *route) devices() (map[int32]bool, error) {
	list, err := r.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, linkMessage(0, 0, 0))
	if err != nil {
		return nil, err
	}
	out := map[int32]bool{}
	for _, m := range list {
		if len(m.Data) >= unix.SizeofIfInfomsg {
			out[int32(binary.NativeEndian.Uint32(m.Data[4:]))] = true
		}
	}
	return out, nil
}

// found is the number of a device that has come: it may have another than before, and a name that the
// kernel has chosen by a pattern.
func (r *route) found(name string, before map[int32]bool) (int32, error) {
	if !strings.Contains(name, "%") {
		return r.device(name)
	}
	after, err := r.devices()
	if err != nil {
		return 0, err
	}
	var come []int32
	for i := range after {
		if !before[i] {
			come = append(come, i)
		}
	}
	if len(come) != 1 {
		return 0, fmt.Errorf("%d devices have come at once: %w", len(come), errdefs.ErrAborted)
	}
	return come[0], nil
}

// address is one of a device's.
type address struct {
	family, prefix      byte
	local, peer, others []byte // others: the broadcast address
}

// addresses are those that reach beyond the link and do not expire.
func (r *route) addresses(index int32) ([]address, error) {
	list, err := r.request(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	var out []address
	for _, m := range list {
		d := m.Data // struct ifaddrmsg: family, prefix, flags, scope, index
		if len(d) < unix.SizeofIfAddrmsg || int32(binary.NativeEndian.Uint32(d[4:])) != index || d[2]&unix.IFA_F_PERMANENT == 0 || d[3] != unix.RT_SCOPE_UNIVERSE {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("read addresses: %w", err)
		}
		a := address{family: d[0], prefix: d[1]}
		for _, x := range attrs {
			switch x.Attr.Type {
			case unix.IFA_LOCAL:
				a.local = x.Value
			case unix.IFA_ADDRESS:
				a.peer = x.Value
			case unix.IFA_BROADCAST:
				a.others = x.Value
			}
		}
		out = append(out, a)
	}
	return out, nil
}

// message adds the address to a device. An IPv6 address was seen to be nobody else's before.
func (a address) message(index int32) []byte {
	flags := byte(unix.IFA_F_PERMANENT)
	if a.family == unix.AF_INET6 {
		flags |= unix.IFA_F_NODAD
	}
	m := binary.NativeEndian.AppendUint32([]byte{a.family, a.prefix, flags, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	for _, x := range []struct {
		kind  uint16
		value []byte
	}{{unix.IFA_LOCAL, a.local}, {unix.IFA_ADDRESS, a.peer}, {unix.IFA_BROADCAST, a.others}} {
		if len(x.value) > 0 {
			m = attributeBytes(m, x.kind, x.value)
		}
	}
	return m
}
