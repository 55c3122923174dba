package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// transaction opens a connection for one train of changes. Its buffers hold the longest
// train that Publish makes; a lost answer is an error and not a wait without end.
func transaction() (*nftables.Conn, *mdnetlink.Conn, error) {
	var socket *mdnetlink.Conn
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *mdnetlink.Conn) error {
		socket = s
		raw, err := s.SyscallConn()
		if err != nil {
			return err
		}
		err = raw.Control(func(fd uintptr) {
			for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, 32<<20)
			}
		})
		return errors.Join(err, s.SetDeadline(time.Now().Add(patience)))
	}))
	if err != nil {
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, socket, nil
}

// steady is the connection that stays, for reading and for changing elements: trains that
// change rules are echoed, and would leave answers on it.
func (r *rules) steady() (c *nftables.Conn, err error) {
	if r.change == nil {
		if r.change, r.socket, err = transaction(); err != nil {
			return nil, err
		}
	}
	if err := r.socket.SetDeadline(time.Now().Add(patience)); err != nil {
		r.hangUp()
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return r.change, nil
}

// questions is the socket that stays.
func (r *rules) questions() (c *conn, err error) {
	if r.ask == nil {
		r.ask, err = dial(unix.NETLINK_NETFILTER)
	}
	return r.ask, err
}

// hangUp closes what stays open: after an error nobody knows which answers are still to come.
func (r *rules) hangUp() {
	if r.ask != nil {
		r.ask.close()
	}
	if r.change != nil {
		_ = r.change.CloseLasting()
	}
	r.ask, r.change, r.socket, r.known = nil, nil, nil, false
}

// commit flushes c. What is known stays known if nobody else changed the ruleset meanwhile.
func (r *rules) commit(c *nftables.Conn) error {
	before, err := r.generation()
	if err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		r.hangUp()
		return fmt.Errorf("change table inet %s: %w", r.table, err)
	}
	after, err := r.generation()
	if err != nil {
		return err
	}
	if r.known && r.gen == before && after == before+1 {
		r.gen = after
	} else {
		r.known = false
	}
	return nil
}

// look forgets what is known if the ruleset has changed.
func (r *rules) look() error {
	gen, err := r.generation()
	if err != nil {
		return err
	}
	if !r.known || r.gen != gen {
		r.gen, r.known, r.sound, r.loaded = gen, true, map[string]bool{}, false
	}
	return nil
}

// vouch remembers that a network's part of the table, and all around it, is as it should be.
func (r *rules) vouch(p plan) {
	if r.known {
		r.sound[p.bridge] = true
	}
}

// generation asks the kernel how often the ruleset has changed.
func (r *rules) generation() (uint32, error) {
	c, err := r.questions()
	if err != nil {
		return 0, err
	}
	gen, err := generation(c)
	if err != nil {
		r.hangUp()
	}
	return gen, err
}

func generation(c *conn) (uint32, error) {
	var m message
	m.begin(nfType(unix.NFT_MSG_GETGEN), 0, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	m.finish()
	if err := unix.Sendto(c.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("send netlink message: %w", err)
	}
	var gen uint32
	err := c.receive(func(h *unix.NlMsghdr, body []byte) (bool, error) {
		if h.Type == unix.NLMSG_ERROR {
			return false, answer(h, body)
		}
		if len(body) > 4 {
			for typ, v := range attributes(body[4:]) {
				if typ == unix.NFTA_GEN_ID && len(v) == 4 {
					gen = binary.BigEndian.Uint32(v)
				}
			}
		}
		return true, nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation of the ruleset (is nf_tables in this kernel?): %w", err)
	}
	return gen, nil
}

func nfType(msg int) uint16 { return uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | msg) } //nolint:gosec // constants

// rule is what we need to know of a rule that is there.
type rule struct {
	handle  uint64
	comment string
}

// list lists the rules of a chain; none if there is no such chain. It looks at nothing
// inside them: other people's hold expressions that no library knows.
func (r *rules) list(family nftables.TableFamily, table, chain string) (all []rule, err error) {
	for range 10 {
		c, err := r.questions()
		if err != nil {
			return nil, err
		}
		if all, err = listRules(c, family, table, chain); err == nil || errors.Is(err, unix.ENOENT) {
			return all, nil
		}
		r.hangUp()
		if !errors.Is(err, errInterrupted) {
			return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
		}
	}
	return nil, fmt.Errorf("list rules of chain %s: %w: %w", chain, errInterrupted, errdefs.ErrAborted)
}

func listRules(c *conn, family nftables.TableFamily, table, chain string) (all []rule, err error) {
	var m message
	m.begin(nfType(unix.NFT_MSG_GETRULE), unix.NLM_F_DUMP, []byte{byte(family), unix.NFNETLINK_V0, 0, 0})
	m.text(unix.NFTA_RULE_TABLE, table)
	m.text(unix.NFTA_RULE_CHAIN, chain)
	return all, c.dump(&m, func(_ uint16, body []byte) {
		var r rule
		for typ, v := range attributes(body[min(4, len(body)):]) {
			switch {
			case typ == unix.NFTA_RULE_HANDLE && len(v) == 8:
				r.handle = binary.BigEndian.Uint64(v)
			case typ == unix.NFTA_RULE_USERDATA && len(v) > 2 && v[0] == 0: // type, length, text
				r.comment = cstring(v[2:])
			}
		}
		all = append(all, r)
	})
}

// listElements lists the elements of a set; none if there is no such set.
func listElements(c *nftables.Conn, s *nftables.Set) ([]nftables.SetElement, error) {
	all, err := c.GetSetElements(s)
	if err != nil && !strings.Contains(err.Error(), unix.ENOENT.Error()) { // the library does not wrap it
		return nil, fmt.Errorf("list set %s: %w", s.Name, err)
	}
	return all, nil
}
