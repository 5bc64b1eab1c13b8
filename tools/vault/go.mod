module github.com/soulbox-dev/soulbox/tools/vault

go 1.25.0

require github.com/hashicorp/vault v1.21.1

tool github.com/hashicorp/vault
