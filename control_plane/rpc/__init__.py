"""The control plane's gRPC services: conversion and nothing else; decisions stand in ``control_plane.services``."""
