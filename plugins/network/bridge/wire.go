package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// message builds a train of netlink messages that go to the kernel in one send.
// Messages are numbered from 1 in the order begun.
type message struct {
	buf   []byte
	start int // of the message being built
	count uint32
}

// begin starts a message; an acknowledgement of each is asked for.
func (m *message) begin(typ, flags uint16, head []byte) {
	m.finish()
	m.start = len(m.buf)
	m.count++
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0) // length, patched by finish
	m.buf = binary.NativeEndian.AppendUint16(m.buf, typ)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, m.count)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, 0)
	m.buf = append(m.buf, head...)
	m.align()
}

func (m *message) finish() {
	if m.count > 0 {
		binary.NativeEndian.PutUint32(m.buf[m.start:], uint32(len(m.buf)-m.start)) //nolint:gosec // a few hundred bytes
	}
}

func (m *message) align() {
	for len(m.buf)%unix.NLMSG_ALIGNTO != 0 {
		m.buf = append(m.buf, 0)
	}
}

func (m *message) bytes(typ uint16, v []byte) {
	m.buf = binary.NativeEndian.AppendUint16(m.buf, uint16(unix.SizeofRtAttr+len(v))) //nolint:gosec // a few hundred bytes
	m.buf = binary.NativeEndian.AppendUint16(m.buf, typ)
	m.buf = append(m.buf, v...)
	m.align()
}

func (m *message) text(typ uint16, v string) { m.bytes(typ, append([]byte(v), 0)) }

func (m *message) u32(typ uint16, v uint32) {
	m.bytes(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// nest puts what fn adds into one attribute. head comes before the attributes.
func (m *message) nest(typ uint16, head []byte, fn func()) {
	at := len(m.buf)
	m.bytes(typ, head)
	fn()
	binary.NativeEndian.PutUint16(m.buf[at:], uint16(len(m.buf)-at)) //nolint:gosec // a few hundred bytes
}

// ifinfo is a struct ifinfomsg (rtnetlink(7)).
func ifinfo(family uint8, index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index)) //nolint:gosec // an interface index is positive
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// conn is a netlink socket of the network namespace its maker's thread was in.
type conn struct{ fd int }

// patience bounds a wait for the kernel's answer. It answers before send returns; only a lost answer could make us wait.
const patience = 10 * time.Second

func dial(protocol int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	// Words for what was wrong, without the message that was wrong.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &conn{fd}, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// kernelError is an errno and the kernel's own words about it.
type kernelError struct {
	errno unix.Errno
	words string
}

func (e *kernelError) Error() string {
	if e.words == "" {
		return e.errno.Error()
	}
	return e.errno.Error() + " (" + e.words + ")"
}

func (e *kernelError) Unwrap() error { return e.errno }

// send sends m and returns the kernel's answer to each message of it: the i-th error is
// that of the i-th message, nil where it succeeded.
func (c *conn) send(m *message) ([]error, error) {
	m.finish()
	if err := unix.Sendto(c.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink message: %w", err)
	}
	answers := make([]error, m.count)
	for left := int(m.count); left > 0; {
		err := c.receive(func(h *unix.NlMsghdr, body []byte) (bool, error) {
			if h.Type != unix.NLMSG_ERROR || h.Seq == 0 || h.Seq > m.count {
				return true, nil
			}
			answers[h.Seq-1] = answer(h, body)
			left--
			return left > 0, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// first is send for those who want every message to succeed.
func (c *conn) first(m *message) error {
	answers, err := c.send(m)
	if err != nil {
		return err
	}
	return errors.Join(answers...)
}

// dump sends the one message of m and calls fn with the body of each answer.
func (c *conn) dump(m *message, fn func(typ uint16, body []byte)) error {
	m.finish()
	if err := unix.Sendto(c.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send netlink message: %w", err)
	}
	return c.receive(func(h *unix.NlMsghdr, body []byte) (bool, error) {
		switch {
		case h.Flags&unix.NLM_F_DUMP_INTR != 0:
			return false, errInterrupted
		case h.Type == unix.NLMSG_DONE:
			return false, nil
		case h.Type == unix.NLMSG_ERROR:
			return false, answer(h, body)
		}
		fn(h.Type, body)
		return true, nil
	})
}

// errInterrupted says that what was listed changed meanwhile; whoever gets it asks again.
var errInterrupted = errors.New("the list changed while it was read")

// receive calls fn with each message until it returns false.
func (c *conn) receive(fn func(h *unix.NlMsghdr, body []byte) (bool, error)) error {
	buf := make([]byte, 32<<10)
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive netlink answer: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not the kernel
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			h := unix.NlMsghdr{
				Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
			}
			if int(h.Len) < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
				return errors.New("receive netlink answer: it is cut short")
			}
			more, err := fn(&h, b[unix.SizeofNlMsghdr:h.Len])
			if err != nil || !more {
				return err
			}
			b = b[min(len(b), (int(h.Len)+3)&^3):]
		}
	}
}

func answer(h *unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		return os.NewSyscallError("netlink", syscall.EBADMSG)
	}
	code := -int32(binary.NativeEndian.Uint32(body)) //nolint:gosec // an errno
	if code == 0 {
		return nil
	}
	e := &kernelError{errno: unix.Errno(code)} //nolint:gosec // an errno
	const nlmFAckTLVs, attrMsg = 0x200, 1
	if h.Flags&nlmFAckTLVs != 0 && len(body) > 4+unix.SizeofNlMsghdr {
		for typ, v := range attributes(body[4+unix.SizeofNlMsghdr:]) {
			if typ == attrMsg {
				e.words = cstring(v)
			}
		}
	}
	return e
}

// attributes ranges over the attributes in b.
func attributes(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
