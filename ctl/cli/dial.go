package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// DefaultHost is where a daemon of this machine listens.
const DefaultHost = "unix:///run/gantry/gantry.sock"

// maxMessage bounds one message from the daemon, in bytes.
const maxMessage = 16 << 20

// broken is the connection to an address that cannot be one: each call tells why.
type broken struct{ err error }

func (b broken) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return b.err }

func (b broken) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, b.err
}

// dial prepares a connection to host: unix:///path, tcp://name:port (with mutual TLS) or
// ssh://[user@]name[:port][/path of the socket].
func dial(host string, t TLS) grpc.ClientConnInterface {
	conn, err := connect(host, t)
	if err != nil {
		return broken{status.Error(codes.InvalidArgument, err.Error())}
	}
	return conn
}

func connect(host string, t TLS) (*grpc.ClientConn, error) {
	scheme, rest, ok := strings.Cut(host, "://")
	if !ok {
		return nil, fmt.Errorf("host %q: no scheme; write unix:///run/gantry/gantry.sock, tcp://name:port or ssh://name", host)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
	}
	target := "passthrough:///gantry"
	switch scheme {
	case "unix":
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", rest)
		}))
	case "tcp":
		creds, err := mutualTLS(host, t)
		if err != nil {
			return nil, err
		}
		opts = append(opts, grpc.WithTransportCredentials(creds))
		target = "dns:///" + rest
	case "ssh":
		opts = append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialSSH(ctx, rest)
		}))
	default:
		return nil, fmt.Errorf("host %q: unknown scheme %q; unix, tcp and ssh are known", host, scheme)
	}
	return grpc.NewClient(target, opts...)
}

func mutualTLS(host string, t TLS) (credentials.TransportCredentials, error) {
	if t.CA == "" || t.Cert == "" || t.Key == "" {
		return nil, fmt.Errorf("host %q: tcp needs --tls-ca, --tls-cert and --tls-key (or GANTRY_TLS_CA, GANTRY_TLS_CERT, GANTRY_TLS_KEY)", host)
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificate authority %s: no certificate in it", t.CA)
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	return credentials.NewTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}), nil
}

// pipeConn is a connection over the pipes of a child process.
type pipeConn struct {
	net.Conn
	cmd *exec.Cmd
}

// Close ends the child as well.
func (p pipeConn) Close() error {
	err := p.Conn.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	return err
}

// dialSSH runs ssh and, on the other side, "gantry system dial-stdio".
func dialSSH(ctx context.Context, rest string) (net.Conn, error) {
	where, path, _ := strings.Cut(rest, "/")
	if where == "" || strings.HasPrefix(where, "-") {
		return nil, fmt.Errorf("host %q: no machine is named", "ssh://"+rest)
	}
	name, port, hasPort := strings.Cut(where, ":")
	args := []string{"-o", "ConnectTimeout=10", "-T"}
	if hasPort {
		args = append(args, "-p", port)
	}
	args = append(args, "--", name, "gantry")
	if path != "" {
		args = append(args, "--host", "unix:///"+path)
	}
	args = append(args, "system", "dial-stdio")
	local, remote, err := socketPair()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "ssh", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = remote, remote, os.Stderr
	err = cmd.Start()
	_ = remote.Close()
	if err != nil {
		_ = local.Close()
		return nil, fmt.Errorf("start ssh: %w", err)
	}
	return pipeConn{local, cmd}, nil
}
