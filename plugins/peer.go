package plugins

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Peer is who is at the other end of a unix socket, as the kernel says (SO_PEERCRED, unix(7)). Of a
// connection that was dialled it is the process that listened.
type Peer struct {
	PID      int
	UID, GID uint32
}

// PeerCredentials are transport credentials that let check decide about the other end of every connection,
// on whichever end they are used. Nothing is encrypted: a unix socket does not leave the kernel.
func PeerCredentials(check func(Peer) error) credentials.TransportCredentials {
	return &peerCredentials{check: check}
}

type peerCredentials struct{ check func(Peer) error }

// peerInfo is what a connection so checked says of itself.
type peerInfo struct {
	credentials.CommonAuthInfo
	peer Peer
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "peercred" }

func (c *peerCredentials) shake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := peerOf(conn)
	if err == nil {
		err = c.check(p)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("check the peer of the plugin's socket: %w", err)
	}
	return conn, peerInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, p}, nil
}

func (c *peerCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.shake(conn)
}

func (c *peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.shake(conn)
}

func (c *peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (c *peerCredentials) Clone() credentials.TransportCredentials {
	return &peerCredentials{check: c.check}
}

func (c *peerCredentials) OverrideServerName(string) error { return nil }

func peerOf(conn net.Conn) (Peer, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("%T is not a unix socket", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var gerr error
	if err := raw.Control(func(fd uintptr) {
		cred, gerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || gerr != nil {
		return Peer{}, errors.Join(err, gerr)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}
