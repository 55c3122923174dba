// Package networks owns networks, endpoints and addresses. It is the only caller of network drivers.
//
// An address is taken in the transaction that claims its endpoint, so that no two can have one, and is
// free again in the transaction that strikes the endpoint: IPAM is a table, and nobody's memory.
// An endpoint has a new id every time a container starts; what a driver holds is found by it, whatever the crash left out.
//
//	networks.go  the service           ports.go    which ports, of whom
//	network.go   the verbs             address.go  which address
//	join.go      endpoints             subnet.go   which subnet
//	store.go     tables and claims     recover.go  after a restart, and what differs
//	server.go    gRPC in, gRPC out
package networks

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
)

// Default is the name of the network that a container joins when none is asked for. It is made
// when the first one does.
const Default = "bridge"

// Drivers finds network drivers.
type Drivers interface {
	// Network returns the named driver, a network.Publisher too if it has the capability "ports". It does not wait for it.
	Network(name string) (network.Driver, error)
	// Info asks what a driver can do. It may start it.
	Info(ctx context.Context, family plugins.Family, name string) (plugins.Info, error)
}

// Options is what the configuration says of networks. The zero value is good.
type Options struct {
	Instance string       // of the daemon: two of them begin to look for free subnets in different places
	Bridge   string       // link name of the default network's bridge; "" is for the driver to say
	Subnet   string       // of the default network; "" means a /24 that the host does not use
	MTU      int          // of the default network; 0 means the uplink's
	Log      *slog.Logger // nil: the default one
	Host     Host         // nil: the kernel's routes and addresses, and /etc/resolv.conf
}

// Service is the verbs.
type Service struct {
	db      *meta.DB
	drivers Drivers
	o       Options
	log     *slog.Logger
	host    Host
	tables

	// making lets one at a time make the default network. A channel: the wait for it ends with a context.
	making   chan struct{}
	nextPort atomic.Uint32

	mu     sync.Mutex
	cursor map[string]uint32    // by network: the last address given
	rested map[string]time.Time // by address: when it was given back
}

// New returns a Service. It registers how its claims are undone: call it before db.Recover.
func New(db *meta.DB, d Drivers, o Options) *Service {
	s := &Service{
		db: db, drivers: d, o: o, log: o.Log, host: o.Host, tables: newTables(),
		making: make(chan struct{}, 1), cursor: map[string]uint32{}, rested: map[string]time.Time{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.host == nil {
		s.host = kernel{}
	}
	db.OnUndo(kindNetwork, s.undoNetwork)
	db.OnUndo(kindEndpoint, s.undoEndpoint)
	return s
}
