// Package network is the contract between gantryd and a network driver.
//
// Every method is idempotent by the ids it names and ends by the context's deadline.
package network

import (
	"context"
	"iter"
	"net/netip"

	"github.com/gantryd/gantry/plugins"
)

// Capabilities.
const (
	Ports = "ports" // of a driver that is also a Publisher
	Check = "check" // of a driver that is also a Checker
)

// Network is a network as its driver sees it.
type Network struct {
	ID, Name string
	Subnets  []netip.Prefix
	Gateways []netip.Addr // one a subnet, in the same order
	MTU      int          // 0: the driver's choice
	Internal bool         // no way out
	Options  map[string]string
	Handle   plugins.Handle
}

// Endpoint is one container's place on one network. The daemon chose the addresses.
type Endpoint struct {
	ID        string
	NetNS     string         // path of a pinned network namespace; of Detach, see there
	Addresses []netip.Prefix // with the subnet's length
	MAC       string         // "": the driver's choice, the same for the same address
	Interface string         // the name wanted in the namespace
	Handle    plugins.Handle
}

// Attached is what Attach made.
type Attached struct {
	Interface   string
	MAC         string
	Routes      []netip.Prefix
	Nameservers []netip.Addr
	Handle      plugins.Handle
}

// Held is an endpoint that a driver holds.
type Held struct{ NetworkID, EndpointID string }

// Driver joins network namespaces.
type Driver interface {
	// CreateNetwork makes what a network needs on this host. Called again, it mends what is missing.
	CreateNetwork(ctx context.Context, n Network) (plugins.Handle, error)
	// DeleteNetwork undoes it, handle or no handle.
	DeleteNetwork(ctx context.Context, n Network) error
	// Attach puts an endpoint into its network namespace, and makes the network first if the host lost it.
	Attach(ctx context.Context, n Network, e Endpoint) (Attached, error)
	// Detach takes it out, with what it published, handle or no handle. Without a NetNS the daemon is
	// about to drop the namespace, and a link that goes with it may be left to go; with one,
	// which may be gone already, the endpoint is gone from Endpoints when Detach returns.
	Detach(ctx context.Context, n Network, e Endpoint) error
	// Endpoints ranges over every endpoint the driver holds, known to the daemon or not.
	Endpoints(ctx context.Context) iter.Seq2[Held, error]
}

// Port is a container port, or a range, published on the host.
type Port struct {
	Protocol  string         // "tcp", "udp"
	Host      netip.AddrPort // no address, or an unspecified one, means every address
	Container uint16
	Count     uint16 // of consecutive ports; 0 means 1
}

// Publisher is the capability "ports".
type Publisher interface {
	// Publish makes ports reachable from outside; the set replaces the last one. A port
	// that is held already is errdefs.ErrAlreadyExists.
	Publish(ctx context.Context, n Network, e Endpoint, ports []Port) error
}

// Want is an endpoint as it should be, with what it publishes. Its NetNS may be "": not known.
type Want struct {
	Endpoint
	Ports []Port
}

// Difference is something on the host that is not as it should be, for people.
type Difference struct {
	Subject string // what differs, in the same words every time it is looked at
	Detail  string // how
}

// Checker is the capability "check".
type Checker interface {
	// Check compares a network and all of its endpoints, as they should be, with what is on the
	// host, and ranges over the differences. It changes nothing: CreateNetwork, Attach and Publish mend.
	Check(ctx context.Context, n Network, want []Want) iter.Seq2[Difference, error]
}
