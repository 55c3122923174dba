package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// socketGroup may talk to the daemon over its unix socket. Whoever can do that is root here:
// the README says so.
const socketGroup = "gantry"

// lockState makes this process the only gantryd on a state directory until it ends.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another gantryd uses %s; stop it, or give this one its own --root, --state and --listen", dir)
		}
		return nil, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	return f, nil
}

// lookupGroup finds a group by its name, as user.LookupGroup does.
type lookupGroup func(name string) (*user.Group, error)

// listen opens every address. Callers may connect at once; they are served after recovery.
func listen(addresses []string, t tlsConfig, lookup lookupGroup) (all []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
		}
	}()
	for _, a := range addresses {
		var l net.Listener
		scheme, rest, _ := strings.Cut(a, "://")
		if scheme == "unix" {
			l, err = listenUnix(rest, lookup)
		} else {
			l, err = listenTLS(rest, t)
		}
		if err != nil {
			return all, fmt.Errorf("listen on %s: %w", a, err)
		}
		all = append(all, l)
	}
	return all, nil
}

// listenUnix listens at path with mode 0660 and the group gantry, if there is one. What a dead
// daemon left at path is replaced; anything else there is refused.
func listenUnix(path string, lookup lookupGroup) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket; move it away", path)
	default:
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("%s is served by another process; stop it, or choose another --listen", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// The mask keeps others out between bind and chmod. It is the process's own, so this
	// happens before anything else runs.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	if err := openToGroup(path, lookup); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func openToGroup(path string, lookup lookupGroup) error {
	g, err := lookup(socketGroup)
	if err != nil {
		slog.Info("no such group: only root can use the socket", "group", socketGroup, "socket", path)
		return os.Chmod(path, 0o600)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s: %w", socketGroup, err)
	}
	if err := os.Chown(path, 0, gid); err != nil {
		return err
	}
	return os.Chmod(path, 0o660) //nolint:gosec // the group is asked for
}

// listenTLS listens on a port and lets in only whom the authority has signed.
func listenTLS(address string, t tlsConfig) (net.Listener, error) {
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read --tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read --tls-ca %s: no certificate in it", t.CA)
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("read --tls-cert and --tls-key: %w", err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, &tls.Config{
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{cert},
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	}), nil
}
