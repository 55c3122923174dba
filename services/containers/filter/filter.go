// Package filter matches containers with the conditions of a list.
package filter

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

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

// Matcher is a list's filters, understood. Those of one key are alternatives.
type Matcher struct {
	alive func(*containersv1.Container) bool // nil: those that do not run are wanted as well
	tests []func(*containersv1.Container) bool
}

// New reads filters. Without all only containers that are alive match; asking for a status or an exit
// code asks for the others as well. The errors are of class InvalidArgument.
func New(filters []*typesv1.Filter, all bool, alive func(*containersv1.Container) bool) (*Matcher, error) {
	m := &Matcher{alive: alive}
	if all {
		m.alive = nil
	}
	by := map[string][]func(*containersv1.Container) bool{}
	for _, f := range filters {
		test, err := newTest(f.GetKey(), f.GetValue())
		if err != nil {
			return nil, err
		}
		if f.GetKey() == "status" || f.GetKey() == "exited" {
			m.alive = nil
		}
		by[f.GetKey()] = append(by[f.GetKey()], test)
	}
	for _, key := range slices.Sorted(maps.Keys(by)) {
		alternatives := by[key]
		m.tests = append(m.tests, func(c *containersv1.Container) bool {
			return slices.ContainsFunc(alternatives, func(t func(*containersv1.Container) bool) bool { return t(c) })
		})
	}
	return m, nil
}

// Match reports whether c is wanted.
func (m *Matcher) Match(c *containersv1.Container) bool {
	if m.alive != nil && !m.alive(c) {
		return false
	}
	return !slices.ContainsFunc(m.tests, func(t func(*containersv1.Container) bool) bool { return !t(c) })
}

func newTest(key, value string) (func(*containersv1.Container) bool, error) {
	switch key {
	case "id":
		return func(c *containersv1.Container) bool { return strings.HasPrefix(c.GetMeta().GetId(), value) }, nil
	case "name":
		return func(c *containersv1.Container) bool { return strings.Contains(c.GetMeta().GetName(), value) }, nil
	case "label":
		k, v, valued := strings.Cut(value, "=")
		return func(c *containersv1.Container) bool {
			got, has := c.GetMeta().GetLabels()[k]
			return has && (!valued || got == v)
		}, nil
	case "status":
		phases, ok := statusWords[value]
		if !ok {
			return nil, fmt.Errorf("filter status=%s: no such status; %s are known: %w", value,
				strings.Join(slices.Sorted(maps.Keys(statusWords)), ", "), errdefs.ErrInvalidArgument)
		}
		return func(c *containersv1.Container) bool { return slices.Contains(phases, c.GetStatus().GetPhase()) }, nil
	case "exited":
		code, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("filter exited=%s: want an exit code: %w", value, errdefs.ErrInvalidArgument)
		}
		return func(c *containersv1.Container) bool {
			return c.GetStatus().GetPhase() == containersv1.Phase_PHASE_EXITED && uint64(c.GetStatus().GetExit().GetCode()) == code
		}, nil
	case "ancestor":
		return func(c *containersv1.Container) bool { return madeFrom(c, value) }, nil
	}
	return nil, fmt.Errorf("filter %q: no such key; id, name, label, status, exited and ancestor are known: %w", key, errdefs.ErrInvalidArgument)
}

// madeFrom reports whether image, in any of the words in which people name one, is what c was made from.
func madeFrom(c *containersv1.Container, image string) bool {
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
