// Package cli is what every verb of the gantry command stands on: its streams, its connection,
// its errors and its output formats.
package cli

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// Env is what a verb may use of the world. Tests give it buffers and a connection of their own.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Host     string // address of the daemon, as --host and GANTRY_HOST give it
	TLS      TLS
	Now      func() time.Time

	mu   sync.Mutex
	conn grpc.ClientConnInterface
}

// TLS names the files that a tcp:// daemon asks for.
type TLS struct{ CA, Cert, Key string }

// NewEnv returns an Env on the process's own streams.
func NewEnv() *Env {
	return &Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Now: time.Now}
}

// Use makes every client speak over conn instead of dialling Host.
func (e *Env) Use(conn grpc.ClientConnInterface) { e.conn = conn }

// Conn returns the connection to the daemon. It is made at the first use, and it does not
// wait: a daemon that is not there is the error of the first call.
func (e *Env) Conn() grpc.ClientConnInterface {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn == nil {
		e.conn = dial(e.Host, e.TLS)
	}
	return e.conn
}

// Containers returns a client of the containers service.
func (e *Env) Containers() containersv1.ContainersServiceClient {
	return containersv1.NewContainersServiceClient(e.Conn())
}

// Images returns a client of the images service.
func (e *Env) Images() imagesv1.ImagesServiceClient {
	return imagesv1.NewImagesServiceClient(e.Conn())
}

// Networks returns a client of the networks service.
func (e *Env) Networks() networksv1.NetworksServiceClient {
	return networksv1.NewNetworksServiceClient(e.Conn())
}

// Volumes returns a client of the volumes service.
func (e *Env) Volumes() volumesv1.VolumesServiceClient {
	return volumesv1.NewVolumesServiceClient(e.Conn())
}

// Snapshots returns a client of the snapshots service.
func (e *Env) Snapshots() snapshotsv1.SnapshotsServiceClient {
	return snapshotsv1.NewSnapshotsServiceClient(e.Conn())
}

// System returns a client of the system service.
func (e *Env) System() systemv1.SystemServiceClient {
	return systemv1.NewSystemServiceClient(e.Conn())
}

// Events returns a client of the events service.
func (e *Env) Events() eventsv1.EventsServiceClient {
	return eventsv1.NewEventsServiceClient(e.Conn())
}

// InTerminal returns stdin's descriptor if it is a terminal.
func (e *Env) InTerminal() (int, bool) { return terminal(e.In) }

// OutTerminal returns stdout's descriptor if it is a terminal.
func (e *Env) OutTerminal() (int, bool) { return terminal(e.Out) }

// ErrTerminal returns stderr's descriptor if it is a terminal.
func (e *Env) ErrTerminal() (int, bool) { return terminal(e.Err) }

func terminal(stream any) (int, bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	return int(f.Fd()), true
}

// Stream ranges over the messages of a server stream until its end or the first error.
func Stream[T any](recv func() (*T, error), yield func(*T) error) error {
	for {
		m, err := recv()
		if err == io.EOF { //nolint:errorlint // gRPC promises io.EOF itself
			return nil
		}
		if err != nil {
			return err
		}
		if err := yield(m); err != nil {
			return err
		}
	}
}
