package spec

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fill gives everything in v a value that is not zero.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(elem, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, elem)
	case reflect.String:
		v.SetString("\"é\n" + strings.Repeat("x", *n%5))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(int64(-*n))
	case reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(uint64(*n)) //nolint:gosec // a count
	case reflect.Interface: // of other systems
	default:
		panic("what of the specification is a " + v.Kind().String() + "?")
	}
}

// TestEverything has every field that the specification knows for Linux, and finds it again.
func TestEverything(t *testing.T) {
	n := 0
	want := &specs.Spec{}
	fill(reflect.ValueOf(want).Elem(), &n)
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Config(raw)
	if err != nil {
		t.Fatal(err)
	}
	want.Solaris, want.Windows, want.VM, want.ZOS, want.FreeBSD = nil, nil, nil, nil, nil
	if !reflect.DeepEqual(got, want) {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		t.Errorf("read  %s\nwrote %s", a, b)
	}
	if n < 400 {
		t.Errorf("only %d values were tried", n)
	}
	rawProcess, err := json.Marshal(want.Process)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := Process(rawProcess); err != nil || !reflect.DeepEqual(p, want.Process) {
		t.Errorf("%+v, %v", p, err)
	}
	rawResources, err := json.Marshal(want.Linux.Resources)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Resources(rawResources); err != nil || !reflect.DeepEqual(r, want.Linux.Resources) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestBad(t *testing.T) {
	for _, raw := range []string{"", "{", `{"process":[]}`, `{"ociVersion":1}`, `{"linux":{"resources":{"pids":{"limit":"x"}}}}`, `{} {}`, "[]", "\x00"} {
		if c, err := Config([]byte(raw)); err == nil {
			t.Errorf("%q: %+v", raw, c)
		}
	}
	for _, raw := range []string{"{}", ` {"unknown":{"a":[1,{"b":null}]},"hostname":"x"} `, `{"process":null,"linux":null}`} {
		if _, err := Config([]byte(raw)); err != nil {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

// FuzzConfig reads, writes and reads again: nothing of what was read is lost, and nothing panics.
func FuzzConfig(f *testing.F) {
	n := 0
	full := &specs.Spec{}
	fill(reflect.ValueOf(full).Elem(), &n)
	raw, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"args":["a","\u0041"],"cwd":"/"},"linux":{"sysctl":{"a":"b"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Config(raw)
		if err != nil || got.Process == nil || !utf8.Valid(raw) { // bytes that are no text stay as they are, and encoding/json would not write them
			return
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := Config(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if third, _ := json.Marshal(twice); string(third) != string(again) {
			t.Fatalf("%s became %s", again, third)
		}
	})
}

// TestLean: reading costs a shim no more than what was read.
func TestLean(t *testing.T) {
	raw, err := json.Marshal(&specs.Spec{Version: "1.3.0", Process: &specs.Process{Args: []string{"sh"}, Cwd: "/"}, Linux: &specs.Linux{}})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(10, func() { _, _ = Config(raw) }); n > 20 {
		t.Errorf("%v allocations", n)
	}
	deps, err := os.ReadFile("spec_easyjson.go")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(deps), `"github.com/mailru/easyjson"`) {
		t.Error("spec_easyjson.go imports easyjson itself, which brings net/http: make it with generate.sh")
	}
}
