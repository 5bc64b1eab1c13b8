// Package settings is what a person's command line remembers between calls: where the control service is, the API key and
// the template to use when none is named.
//
// It owns the file, its keys and the order in which a value is looked for: flag, environment, the person's file, the file of
// a development server on this machine, the default. It never speaks to the service.
package settings

import (
	"fmt"
	"slices"
	"strings"
)

// DefaultAddress is where a control service listens unless it is told otherwise.
const DefaultAddress = "http://127.0.0.1:7300"

// Names of the environment variables.
const (
	EnvAddress = "SOULBOX_ADDR"
	EnvAPIKey  = "SOULBOX_API_KEY"
	EnvConfig  = "SOULBOX_CONFIG" // path of the file instead of the usual one
)

// Names of the keys.
const (
	Address  = "address"
	APIKey   = "api_key"
	Template = "template"
)

// Key is one thing that can be set.
type Key struct {
	Name    string
	Help    string
	Env     string // environment variable that goes before the file; may be empty
	Default string
	Secret  bool
	check   func(string) (string, error) // returns the value as it is stored
}

// Keys are all keys, in the order in which they are shown.
var keys = []Key{
	{Name: Address, Help: "URL or host:port of the control service", Env: EnvAddress, Default: DefaultAddress, check: ParseAddress},
	{Name: APIKey, Help: "API key: sb_<key id>_<secret>", Env: EnvAPIKey, Secret: true, check: checkAPIKey},
	{Name: Template, Help: "template of sandboxes where nothing else names one", Default: "base", check: checkTemplate},
}

// Keys returns all keys, in the order in which they are shown.
func Keys() []Key { return slices.Clone(keys) }

// Find returns the key of that name, or an error that lists those that exist.
func Find(name string) (Key, error) {
	names := make([]string, 0, len(keys))
	for _, k := range keys {
		if k.Name == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	return Key{}, fmt.Errorf("there is no setting %.60q; there are %s", name, strings.Join(names, ", "))
}

// Show returns value as it may stand on a screen: a secret is cut to what tells it from others.
func (k Key) Show(value string) string {
	if !k.Secret || value == "" {
		return value
	}
	// The key id is no secret and is what people compare: sb_<key id>_<secret>, or e2b_ with 16 digits of it before the secret.
	const e2b = len("e2b_") + 16
	switch i := strings.LastIndexByte(value, '_'); {
	case strings.HasPrefix(value, "sb_") && i > len("sb_"):
		return value[:i+1] + "…"
	case strings.HasPrefix(value, "e2b_") && len(value) > 2*e2b:
		return value[:e2b] + "…"
	}
	return "…"
}

// Value is a setting with the place that it came from.
type Value struct {
	Key
	Value  string
	Source string // "flag", "environment", the path of a file, or "default"; empty where it is not set at all
}

// Sources are the places that a value is looked for in, first to last.
type Sources struct {
	Flags map[string]string // by key name; what is empty was not given
	Env   func(string) string
	File  File // the person's own
	Dev   File // of a development server on this machine
}

// Get returns the value of the key of that name. A value that is malformed is an error that names its source.
func (s Sources) Get(name string) (Value, error) {
	k, err := Find(name)
	if err != nil {
		return Value{}, err
	}
	v := s.find(k)
	if v.Value == "" {
		return v, nil
	}
	if v.Value, err = k.check(v.Value); err != nil {
		return Value{}, fmt.Errorf("%s from %s: %w", name, v.Source, err)
	}
	return v, nil
}

func (s Sources) find(k Key) Value {
	if v := s.Flags[k.Name]; v != "" {
		return Value{k, v, "flag"}
	}
	if k.Env != "" && s.Env != nil {
		if v := s.Env(k.Env); v != "" {
			return Value{k, v, "environment"}
		}
	}
	if v := s.File.Values[k.Name]; v != "" {
		return Value{k, v, s.File.Path}
	}
	if v := s.Dev.Values[k.Name]; v != "" && s.devCounts() {
		return Value{k, v, s.Dev.Path}
	}
	if k.Default != "" {
		return Value{k, k.Default, "default"}
	}
	return Value{Key: k}
}

// devCounts reports whether the development server's file may be used: only where nothing else says which service is meant,
// so that its key is not sent elsewhere.
func (s Sources) devCounts() bool {
	return s.Flags[Address] == "" && (s.Env == nil || s.Env(EnvAddress) == "") && s.File.Values[Address] == ""
}
