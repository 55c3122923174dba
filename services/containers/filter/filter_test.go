package filter

import (
	"testing"

	"github.com/containerd/errdefs"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func TestAncestor(t *testing.T) {
	c := &containersv1.Container{
		Spec:   &containersv1.Spec{Image: "team/app"},
		Origin: &containersv1.Origin{Image: "docker.io/team/app:latest", ImageId: "sha256:0123456789ab"},
	}
	for image, want := range map[string]bool{
		"team/app": true, "team/app:latest": true, "docker.io/team/app:latest": true, "docker.io/team/app": true, "sha256:0123456789ab": true, "0123": true, "sha256:01234": true,
		"app": false, "team/app:1": false, "012": false, "9": false, "": false, "sha256:": false,
	} {
		m, err := New([]*typesv1.Filter{{Key: "ancestor", Value: image}}, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Match(c); got != want {
			t.Errorf("%q: %v", image, got)
		}
	}
}

func TestAlternatives(t *testing.T) {
	never := func(*containersv1.Container) bool { return false }
	c := &containersv1.Container{Meta: &typesv1.Meta{Name: "web", Labels: map[string]string{"a": "1"}}, Status: &containersv1.Status{Phase: containersv1.Phase_PHASE_EXITED}}
	f := func(kv ...string) (out []*typesv1.Filter) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, &typesv1.Filter{Key: kv[i], Value: kv[i+1]})
		}
		return out
	}
	for _, tc := range []struct {
		filters []*typesv1.Filter
		want    bool
	}{
		{nil, false}, // it is not alive
		{f("status", "exited"), true},
		{f("status", "dead"), false},
		{f("status", "dead", "status", "exited"), true},
		{f("status", "exited", "name", "db"), false},
		{f("status", "exited", "name", "db", "name", "we"), true},
		{f("status", "exited", "label", "a=1", "label", "a=2"), true},
		{f("exited", "0"), true},
	} {
		m, err := New(tc.filters, false, never)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Match(c); got != tc.want {
			t.Errorf("%v: %v", tc.filters, got)
		}
	}
	for _, bad := range [][]*typesv1.Filter{f("status", "odd"), f("exited", "-1"), f("colour", "red")} {
		if _, err := New(bad, false, never); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
