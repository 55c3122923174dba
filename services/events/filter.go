package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gantryd/gantry/internal/filter"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
)

type event = *eventsv1.Event

// kinds are those of the tables that clients may follow.
var kinds = []string{"containers", "endpoints", "images", "networks", "snapshots", "volumes"}

// verbs are what events tell, and docker's other words for them.
var verbs = map[string]string{"create": "create", "update": "update", "remove": "remove", "destroy": "remove", "delete": "remove"}

// keys are what events are filtered by: type and event are docker's words for kind and verb, container
// and the like name a thing whose own events, or those that tell of it, are meant.
var keys = filter.Keys[event]{
	"kind":      {Test: kind},
	"type":      {Test: kind},
	"verb":      {Test: verb},
	"event":     {Test: verb},
	"id":        filter.ID(event.GetId),
	"label":     filter.Label(labels),
	"container": of("containers", "container"),
	"image":     of("images", "image"),
	"network":   of("networks", "network"),
	"volume":    of("volumes", "volume"),
	"name":      fact("name"),
	"endpoint":  fact("endpoint"),
	"backend":   fact("backend"),
	"code":      fact("code"),
	"reason":    fact("reason"),
	"phase":     {Test: phase},
	"wanted":    fact("wanted"),
	"plugin": {Test: func(string) (func(event) bool, error) {
		return nil, errors.New("plugins make no events; \"gantry plugin ls\" shows how they are")
	}},
}

// kind is a kind, said as one or many: container, containers.
func kind(value string) (func(event) bool, error) {
	for _, k := range kinds {
		if value == k || value+"s" == k {
			return func(e event) bool { return e.GetKind() == k }, nil
		}
	}
	return nil, fmt.Errorf("no such kind; known are %s", strings.Join(kinds, ", "))
}

func verb(value string) (func(event) bool, error) {
	v, ok := verbs[value]
	if !ok {
		return nil, errors.New("no such event; known are create, update and remove (what a container does is a fact: phase=running, phase=exited, code=0)")
	}
	return func(e event) bool { return e.GetVerb() == v }, nil
}

// phase is a container's phase, as the API has it or as users say it: PHASE_RUNNING, running.
func phase(value string) (func(event) bool, error) {
	full := strings.ToUpper(value)
	if !strings.HasPrefix(full, "PHASE_") {
		full = "PHASE_" + full
	}
	if n, ok := containersv1.Phase_value[full]; !ok || n == 0 {
		var known []string
		for n := int32(1); int(n) < len(containersv1.Phase_name); n++ {
			known = append(known, strings.ToLower(strings.TrimPrefix(containersv1.Phase_name[n], "PHASE_")))
		}
		slices.Sort(known)
		return nil, fmt.Errorf("no such phase; known are %s", strings.Join(known, ", "))
	}
	return func(e event) bool { return e.GetFacts()["phase"] == full }, nil
}

// fact is a fact as it is told.
func fact(name string) filter.Key[event] {
	return filter.Any(func(e event, value string) bool {
		got, told := e.GetFacts()[name]
		return told && got == value
	})
}

// of is what happens to one thing, by its name or the beginning of its id, and what happens with it elsewhere.
func of(kind, name string) filter.Key[event] {
	return filter.Any(func(e event, value string) bool {
		facts := e.GetFacts()
		if value == "" {
			return false
		}
		if e.GetKind() == kind && (facts["name"] == value || strings.HasPrefix(e.GetId(), value)) {
			return true
		}
		got := facts[name]
		return got == value || len(value) >= 12 && strings.HasPrefix(got, value)
	})
}

// labels are those of what an event tells of.
func labels(e event) map[string]string {
	found := map[string]string{}
	for k, v := range e.GetFacts() {
		if name, is := strings.CutPrefix(k, "label."); is {
			found[name] = v
		}
	}
	return found
}
