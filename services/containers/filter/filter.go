// Package filter matches containers with the conditions of a list.
package filter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/internal/filter"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// statusWords are the phases in the words of users.
var statusWords = map[string][]containersv1.Phase{
	"created":     {containersv1.Phase_PHASE_CREATED},
	"starting":    {containersv1.Phase_PHASE_STARTING},
	"running":     {containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_STOPPING},
	"paused":      {containersv1.Phase_PHASE_PAUSED},
	"stopping":    {containersv1.Phase_PHASE_STOPPING},
	"restarting":  {containersv1.Phase_PHASE_RESTARTING},
	"exited":      {containersv1.Phase_PHASE_EXITED},
	"unreachable": {containersv1.Phase_PHASE_UNREACHABLE},
	"removing":    {}, // docker's words, for states that there are not
	"dead":        {},
}

// World is what a container's record does not say.
type World struct {
	// Alive reports whether a container is one that a list without -a shows.
	Alive func(*containersv1.Container) bool
	// Find is the container that a user means, for those who ask for what was made before it or since.
	Find func(ref string) (*containersv1.Container, error)
	// NetworkID is the id of the network of a name, "" if there is none.
	NetworkID func(name string) string
}

type container = *containersv1.Container

// New makes one function of filters. Without all only containers that are alive match; asking for a status
// or an exit code asks for the others as well. The errors are of class InvalidArgument, or what World.Find says.
func New(filters []*typesv1.Filter, all bool, w World) (func(container) bool, error) {
	match, err := filter.New("containers", keys(w), filters)
	if err != nil {
		return nil, err
	}
	for _, f := range filters {
		all = all || f.GetKey() == "status" || f.GetKey() == "exited"
	}
	return func(c container) bool { return (all || w.Alive(c)) && match(c) }, nil
}

func keys(w World) filter.Keys[container] {
	return filter.Keys[container]{
		"id":       filter.ID(func(c container) string { return c.GetMeta().GetId() }),
		"name":     filter.Name(func(c container) []string { return []string{c.GetMeta().GetName(), "/" + c.GetMeta().GetName()} }),
		"label":    filter.Label(func(c container) map[string]string { return c.GetMeta().GetLabels() }),
		"status":   {Test: status},
		"exited":   {Test: exited},
		"ancestor": filter.Any(madeFrom),
		"volume":   filter.Any(mounts),
		"network":  filter.Any(func(c container, value string) bool { return isOn(c, value, w.NetworkID) }),
		"before":   {Test: func(ref string) (func(container) bool, error) { return made(w, ref, -1) }},
		"since":    {Test: func(ref string) (func(container) bool, error) { return made(w, ref, 1) }},
		"publish":  {Test: func(value string) (func(container) bool, error) { return ports(value, publishes) }},
		"expose":   {Test: func(value string) (func(container) bool, error) { return ports(value, exposes) }},
	}
}

func status(value string) (func(container) bool, error) {
	phases, ok := statusWords[value]
	if !ok {
		return nil, fmt.Errorf("no such status; known are %s", strings.Join(slices.Sorted(maps.Keys(statusWords)), ", "))
	}
	return func(c container) bool { return slices.Contains(phases, c.GetStatus().GetPhase()) }, nil
}

func exited(value string) (func(container) bool, error) {
	code, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return nil, errors.New("want an exit code")
	}
	return func(c container) bool {
		return c.GetStatus().GetPhase() == containersv1.Phase_PHASE_EXITED && uint64(c.GetStatus().GetExit().GetCode()) == code
	}, nil
}

// made tells what was created before (-1) or after (1) the container that ref means.
func made(w World, ref string, order int) (func(container) bool, error) {
	than, err := w.Find(ref)
	if err != nil {
		return nil, err
	}
	return func(c container) bool {
		return c.GetMeta().GetCreatedAt().AsTime().Compare(than.GetMeta().GetCreatedAt().AsTime()) == order
	}, nil
}

// mounts reports whether c mounts a volume, or a host path, of that name, or anything at that path.
func mounts(c container, value string) bool {
	return value != "" && slices.ContainsFunc(c.GetVolumes(), func(m *containersv1.VolumeMount) bool {
		return m.GetSource() == value || m.GetTarget() == value
	})
}

// isOn reports whether c is on the network of that name or id, or will be when it runs.
func isOn(c container, value string, idOf func(name string) string) bool {
	var on []string
	switch c.GetSpec().GetNetworkMode() {
	case containersv1.NetworkMode_NETWORK_MODE_HOST:
		return value == "host"
	case containersv1.NetworkMode_NETWORK_MODE_NONE:
		return value == "none"
	case containersv1.NetworkMode_NETWORK_MODE_CONTAINER: // the networks are that one's
		return false
	case containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED:
	}
	for _, a := range c.GetStatus().GetAddresses() {
		on = append(on, a.GetNetwork())
	}
	for _, n := range c.GetSpec().GetNetworks() {
		on = append(on, n.GetNetwork())
	}
	if len(on) == 0 {
		on = []string{"bridge"}
	}
	return slices.ContainsFunc(on, func(name string) bool {
		id := idOf(name)
		return name == value || id != "" && len(value) >= 4 && strings.HasPrefix(id, value)
	})
}

// span is consecutive ports of one protocol.
type span struct {
	protocol    string
	first, last uint64
}

// ports reads PORT[-PORT][/PROTOCOL] and tests whether a container has one of these ports.
func ports(value string, of func(container) []span) (func(container) bool, error) {
	want, ok := readSpan(value)
	if !ok {
		return nil, errors.New("want a port or a range of them, as in 80, 80/udp or 8000-8080/tcp")
	}
	return func(c container) bool {
		return slices.ContainsFunc(of(c), func(s span) bool {
			return s.protocol == want.protocol && s.first <= want.last && want.first <= s.last
		})
	}, nil
}

func readSpan(value string) (s span, ok bool) {
	numbers, protocol, has := strings.Cut(value, "/")
	if !has {
		protocol = "tcp"
	}
	from, to, isRange := strings.Cut(numbers, "-")
	first, err := strconv.ParseUint(from, 10, 16)
	if !isRange {
		return span{protocol, first, first}, err == nil && first > 0
	}
	last, err2 := strconv.ParseUint(to, 10, 16)
	return span{protocol, first, last}, err == nil && err2 == nil && first > 0 && first <= last
}

// publishes are the ports of the host that lead to c now.
func publishes(c container) (out []span) {
	for _, p := range c.GetStatus().GetPorts() {
		out = append(out, spanOf(p, p.GetHostPort()))
	}
	return out
}

// exposes are the ports of c that its image or its user named.
func exposes(c container) (out []span) {
	for _, p := range c.GetSpec().GetPorts() {
		out = append(out, spanOf(p, p.GetContainerPort()))
	}
	for _, p := range c.GetOrigin().GetConfig().GetExposedPorts() {
		if s, ok := readSpan(p); ok {
			out = append(out, s)
		}
	}
	return out
}

func spanOf(p *containersv1.PortMapping, first uint32) span {
	protocol := p.GetProtocol()
	if protocol == "" {
		protocol = "tcp"
	}
	return span{protocol, uint64(first), uint64(first) + uint64(max(p.GetCount(), 1)) - 1}
}

// madeFrom reports whether image, in any of the words in which people name one, is what c was made from.
func madeFrom(c container, image string) bool {
	o := c.GetOrigin()
	if image == "" {
		return false
	}
	if image == c.GetSpec().GetImage() || image == o.GetImage() || image == o.GetImageId() {
		return true
	}
	if digits := strings.TrimPrefix(image, "sha256:"); len(digits) >= 4 && strings.HasPrefix(strings.TrimPrefix(o.GetImageId(), "sha256:"), digits) {
		return true
	}
	full := o.GetImage()
	return full == "docker.io/library/"+image || full == "docker.io/"+image ||
		full == "docker.io/library/"+image+":latest" || full == "docker.io/"+image+":latest" || full == image+":latest"
}
