package filter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

type thing struct {
	id, name, driver string
	labels           map[string]string
	old              bool
}

var keys = Keys[thing]{
	"id":     ID(func(x thing) string { return x.id }),
	"name":   Name(func(x thing) []string { return []string{x.name, "/" + x.name} }),
	"driver": Is(func(x thing) string { return x.driver }),
	"label":  Label(func(x thing) map[string]string { return x.labels }),
	"old":    Bool(func(x thing) bool { return x.old }),
}

func conditions(kv ...string) (out []*typesv1.Filter) {
	for _, s := range kv {
		k, v, _ := strings.Cut(s, "=")
		out = append(out, &typesv1.Filter{Key: k, Value: v})
	}
	return out
}

func TestNew(t *testing.T) {
	all := []thing{
		{"a1", "web", "bridge", map[string]string{"a": "1"}, true},
		{"a2", "web2", "bridge", map[string]string{"a": "1", "b": ""}, false},
		{"b1", "my-web", "other", nil, false},
	}
	for filters, want := range map[string]string{
		"":                            "web web2 my-web ",
		"name=web":                    "web web2 my-web ",
		"name=^web$":                  "web ",
		"name=^/web$":                 "web ",
		"name=^web":                   "web web2 ",
		"name=b.?$":                   "web web2 my-web ",
		"name=^web$ name=^my":         "web my-web ",
		"name=^web$ driver=other":     "",
		"id=a":                        "web web2 ",
		"id=":                         "",
		"id=a1 id=b":                  "web my-web ",
		"driver=bridge old=false":     "web2 ",
		"old=1":                       "web ",
		"old=0":                       "web2 my-web ",
		"label=a":                     "web web2 ",
		"label=a=1":                   "web web2 ",
		"label=a=2":                   "",
		"label=a label=b":             "web2 ", // labels must all be there, as docker has it
		"label=b=":                    "web2 ",
		"driver=bridge driver=other":  "web web2 my-web ",
		"driver=bridge driver=absent": "web web2 ",
	} {
		match, err := New("things", keys, conditions(strings.Fields(filters)...))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, x := range all {
			if match(x) {
				got += x.name + " "
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", filters, got, want)
		}
	}
}

func TestBad(t *testing.T) {
	for filters, want := range map[string]string{
		"colour=red": `filter "colour": no such key of things; known are driver, id, label, name and old`,
		"old=maybe":  "filter old=maybe: want true or false",
		"name=(":     "filter name=(: no regular expression",
		"label==x":   "filter label==x: the label is missing",
	} {
		if _, err := New("things", keys, conditions(filters)); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", filters, err)
		}
	}
	if _, err := New("things", keys, []*typesv1.Filter{{Key: strings.Repeat("x", 1<<20)}}); err == nil || len(err.Error()) > 1<<10 {
		t.Error(fmt.Sprint(err)[:min(1<<10, len(fmt.Sprint(err)))])
	}
}
