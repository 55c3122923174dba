package cli

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFilters(t *testing.T) {
	t.Parallel()
	got, err := Filters([]string{"name=web", "label=a=b", " status = exited ", "label="})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range got {
		all = append(all, f.GetKey()+"|"+f.GetValue())
	}
	if want := []string{"name|web", "label|a=b", "status|exited", "label|"}; !slices.Equal(all, want) {
		t.Errorf("%q", all)
	}
	for _, bad := range []string{"", "name", "=web", " =web"} {
		if _, err := Filters([]string{bad}); ExitCode(err) != 2 || !strings.Contains(err.Error(), "--filter") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	got, err := Labels([]string{"a=b", "c", "d=", "e=f=g", "a=again"})
	if want := map[string]string{"a": "again", "c": "", "d": "", "e": "f=g"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "=b"} {
		if _, err := Labels([]string{bad}); ExitCode(err) != 2 {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("GANTRY_TEST_SET", "here=there")
	for in, want := range map[string]string{
		"A=b": "A=b", "A=": "A=", "A=b=c": "A=b=c", "A= x ": "A= x ", "GANTRY_TEST_SET": "GANTRY_TEST_SET=here=there",
	} {
		if got, ok, err := EnvVar(in); got != want || !ok || err != nil {
			t.Errorf("%q: %q, %t, %v", in, got, ok, err)
		}
	}
	if _, ok, err := EnvVar("GANTRY_TEST_UNSET"); ok || err != nil {
		t.Errorf("unset: %t, %v", ok, err)
	}
	for _, bad := range []string{"", "=x", "A B=c", "A\t=c"} {
		if _, _, err := EnvVar(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	file := filepath.Join(t.TempDir(), "env")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("\ufeffA=b\r\n# no\n\n  C=d e \r\n\t#neither\nGANTRY_TEST_SET\nGANTRY_TEST_UNSET\nE='x'\nF=#x")
	got, err := EnvFile(file)
	if want := []string{"A=b", "C=d e ", "GANTRY_TEST_SET=here=there", "E='x'", "F=#x"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	write("A=b\n=c\n")
	if _, err := EnvFile(file); ExitCode(err) != 2 || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
	if _, err := EnvFile(file + ".not"); ExitCode(err) != 2 {
		t.Errorf("%v", err)
	}
}
