package filter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
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
		m, err := New([]*typesv1.Filter{{Key: "ancestor", Value: image}}, true, World{})
		if err != nil {
			t.Fatal(err)
		}
		if got := m(c); got != want {
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
		{f("status", "exited", "label", "a=1", "label", "a=2"), false}, // labels must all be there
		{f("status", "exited", "label", "a=1", "label", "a"), true},
		{f("exited", "0"), true},
	} {
		m, err := New(tc.filters, false, World{Alive: never})
		if err != nil {
			t.Fatal(err)
		}
		if got := m(c); got != tc.want {
			t.Errorf("%v: %v", tc.filters, got)
		}
	}
	for _, bad := range [][]*typesv1.Filter{f("status", "odd"), f("exited", "-1"), f("colour", "red")} {
		if _, err := New(bad, false, World{Alive: never}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// at is a container made at a second, with what a test adds.
func at(second int64, name string, add ...func(*containersv1.Container)) *containersv1.Container {
	c := &containersv1.Container{Meta: &typesv1.Meta{Id: name + "-id", Name: name, CreatedAt: &timestamppb.Timestamp{Seconds: second}}, Spec: &containersv1.Spec{}, Status: &containersv1.Status{}}
	for _, f := range add {
		f(c)
	}
	return c
}

// TestKeys asks for three containers by what docker's users know of them.
func TestKeys(t *testing.T) {
	all := []*containersv1.Container{
		at(1, "web", func(c *containersv1.Container) {
			c.Spec.Networks = []*containersv1.NetworkAttachment{{Network: "front"}}
			c.Volumes = []*containersv1.VolumeMount{{Source: "data", Target: "/srv"}, {Source: "/etc/ssl", Target: "/ssl"}}
			c.Spec.Ports = []*containersv1.PortMapping{{ContainerPort: 80}, {ContainerPort: 5000, Count: 10, Protocol: "udp"}}
			c.Status.Ports = []*containersv1.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostPort: 6000, ContainerPort: 5000, Count: 10, Protocol: "udp"}}
		}),
		at(2, "web2", func(c *containersv1.Container) {
			c.Spec.NetworkMode = containersv1.NetworkMode_NETWORK_MODE_HOST
			c.Origin = &containersv1.Origin{Config: &imagesv1.Config{ExposedPorts: []string{"443/tcp", "53/udp"}}}
		}),
		at(3, "db", func(c *containersv1.Container) {
			c.Status.Addresses = []*containersv1.Address{{Network: "bridge"}}
		}),
	}
	w := World{
		Find: func(ref string) (*containersv1.Container, error) {
			for _, c := range all {
				if c.GetMeta().GetName() == ref {
					return c, nil
				}
			}
			return nil, fmt.Errorf("container %q: there is none: %w", ref, errdefs.ErrNotFound)
		},
		NetworkID: func(name string) string { return map[string]string{"front": "f00d1234", "bridge": "b41d6e00"}[name] },
	}
	for filters, want := range map[string]string{
		"name=^web$": "web ", "name=^/web$": "web ", "name=eb": "web web2 ", "name=^(db|web)$": "web db ",
		"network=front": "web ", "network=f00d": "web ", "network=host": "web2 ", "network=bridge": "db ", "network=none": "", "network=b41d6e00": "db ",
		"volume=data": "web ", "volume=/srv": "web ", "volume=/etc/ssl": "web ", "volume=": "", "volume=other": "",
		"before=web2": "web ", "since=web2": "db ", "since=web before=db": "web2 ", "since=db": "",
		"publish=8080": "web ", "publish=8080/udp": "", "publish=80": "", "publish=8000-9000/tcp": "web ", "publish=6005/udp": "web ",
		"expose=80": "web ", "expose=5009/udp": "web ", "expose=5010/udp": "", "expose=443": "web2 ", "expose=50-60/udp": "web2 ", "expose=80 expose=443": "web web2 ",
	} {
		match, err := New(read(filters), true, w)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range all {
			if match(c) {
				got += c.GetMeta().GetName() + " "
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
	for filters, class := range map[string]func(error) bool{
		"before=nope": errdefs.IsNotFound, "since=": errdefs.IsNotFound, "health=healthy": errdefs.IsInvalidArgument, "publish=x": errdefs.IsInvalidArgument,
		"publish=0": errdefs.IsInvalidArgument, "expose=90-80": errdefs.IsInvalidArgument, "name=(": errdefs.IsInvalidArgument,
	} {
		if _, err := New(read(filters), true, w); !class(err) {
			t.Errorf("%s: %v", filters, err)
		}
	}
}

// read makes filters of words.
func read(words string) (out []*typesv1.Filter) {
	for _, s := range strings.Fields(words) {
		k, v, _ := strings.Cut(s, "=")
		out = append(out, &typesv1.Filter{Key: k, Value: v})
	}
	return out
}
