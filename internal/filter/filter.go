// Package filter reads the conditions of a list: key=value, as users write them with --filter.
//
// Whoever has a list says which keys there are and what each tests; the rest is the same for every
// list: several conditions of one key are alternatives (or must all hold, where the key says so),
// different keys must all hold, and a key that is not known is an error that names those that are.
package filter

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// longest is how many bytes of a value an error repeats.
const longest = 200

// Key is what a key tests. Test reads one value; what it says of a bad one needs neither
// the key and the value before it nor, if it is InvalidArgument, a class.
type Key[T any] struct {
	Test func(value string) (func(T) bool, error)
	// Every says that all conditions of this key must hold, not one.
	Every bool
}

// Keys are the keys of a list.
type Keys[T any] map[string]Key[T]

// New makes one function of filters. of says what is listed, in the plural. The errors are of class
// InvalidArgument, or what a key says.
func New[T any](of string, keys Keys[T], filters []*typesv1.Filter) (func(T) bool, error) {
	tests := map[string][]func(T) bool{}
	for _, f := range filters {
		key, value := f.GetKey(), f.GetValue()
		k, ok := keys[key]
		if !ok {
			return nil, fmt.Errorf("filter %.*q: no such key of %s; known are %s: %w", longest, key, of, list(slices.Sorted(maps.Keys(keys))), errdefs.ErrInvalidArgument)
		}
		t, err := k.Test(value)
		if err != nil {
			return nil, fmt.Errorf("filter %s=%.*s: %w", key, longest, value, classed(err))
		}
		tests[key] = append(tests[key], t)
	}
	return func(x T) bool {
		holds := func(t func(T) bool) bool { return t(x) }
		fails := func(t func(T) bool) bool { return !t(x) }
		for key, of := range tests {
			if keys[key].Every && slices.ContainsFunc(of, fails) || !slices.ContainsFunc(of, holds) {
				return false
			}
		}
		return true
	}, nil
}

// classed is err with a class: its own, else InvalidArgument.
func classed(err error) error {
	if errdefs.Resolve(err) != errdefs.ErrUnknown { //nolint:errorlint // Resolve answers with the class itself
		return err
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

// list writes words as a sentence has them.
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// Name is a regular expression that some part of a name matches; ^web$ is web alone. The names are all
// those that x goes by.
func Name[T any](names func(T) []string) Key[T] {
	return Key[T]{Test: func(value string) (func(T) bool, error) {
		re, err := regexp.Compile(value)
		if err != nil {
			return nil, fmt.Errorf("no regular expression (%w)", err)
		}
		return func(x T) bool { return slices.ContainsFunc(names(x), re.MatchString) }, nil
	}}
}

// ID is the beginning of an id.
func ID[T any](id func(T) string) Key[T] {
	return is(func(x T, value string) bool { return value != "" && strings.HasPrefix(id(x), value) })
}

// Is is a word as it is.
func Is[T any](word func(T) string) Key[T] {
	return is(func(x T, value string) bool { return word(x) == value })
}

// Any is a word that x has.
func Any[T any](has func(x T, value string) bool) Key[T] { return is(has) }

func is[T any](test func(x T, value string) bool) Key[T] {
	return Key[T]{Test: func(value string) (func(T) bool, error) {
		return func(x T) bool { return test(x, value) }, nil
	}}
}

// Label is a label, with its value or without: key or key=value.
func Label[T any](labels func(T) map[string]string) Key[T] {
	return Key[T]{Every: true, Test: func(value string) (func(T) bool, error) {
		key, want, valued := strings.Cut(value, "=")
		if key == "" {
			return nil, fmt.Errorf("the label is missing; write key or key=value")
		}
		return func(x T) bool {
			got, has := labels(x)[key]
			return has && (!valued || got == want)
		}, nil
	}}
}

// Bool is true or false.
func Bool[T any](is func(T) bool) Key[T] {
	return Key[T]{Test: func(value string) (func(T) bool, error) {
		switch value {
		case "true", "1":
			return is, nil
		case "false", "0":
			return func(x T) bool { return !is(x) }, nil
		}
		return nil, fmt.Errorf("want true or false")
	}}
}
