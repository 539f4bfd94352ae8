"""One function for each thing a user can ask for; the command line and the GUI call nothing else."""

from __future__ import annotations

import importlib.metadata

from quantailor.ggml import library
from quantailor.models.hub import find_token
from quantailor.service.builds import (
    BuildWish,
    StrategyChoice,
    build_offer,
    check_built,
    chosen_strategy,
    compare_with,
    keep_type_list,
    list_builds,
    list_choices,
    start_build,
    suggested_name,
)
from quantailor.service.card import model_card, suggested_file_name, write_card
from quantailor.service.checking import check_build
from quantailor.service.comparing import compare_strategies, preset_types_of
from quantailor.service.converting import ConversionOffer, conversion_offer
from quantailor.service.cost import study_cost
from quantailor.service.desk import Desk, desk_state
from quantailor.service.drafts import (
    Draft,
    drafts_of,
    edit,
    forget_draft,
    list_drafts,
    save_draft,
    save_strategy,
    strategy_text,
)
from quantailor.service.experts import experts
from quantailor.service.exporting import export, llama_quantize_command
from quantailor.service.fetching import cached_model, shipped_imatrix
from quantailor.service.hub import peek
from quantailor.service.inspection import inspect
from quantailor.service.jobs import (
    cancel_job,
    follow_job,
    list_jobs,
    pause_job,
    remove_job,
    resume_job,
    run_job,
    show_job,
    start_detached,
    submit,
)
from quantailor.service.opening import disk_plan, downloaded_model, hub_cache, list_folder, model_overview, understand
from quantailor.service.planning import plan, plan_rule
from quantailor.service.predicting import predict
from quantailor.service.preflight import preflight
from quantailor.service.profile_words import profile_findings
from quantailor.service.progress import MeasurementMap, MeasurementWatch, measurement_map, role_bands
from quantailor.service.projects import list_projects, open_project, project
from quantailor.service.reporting import compare_models, report
from quantailor.service.results import JobReport, ProjectReport
from quantailor.service.structure import (
    configuration_files,
    configuration_text,
    largest_tensors,
    model_metadata,
    tensor_rows,
    tensor_types,
)
from quantailor.service.verdicts import (
    StoredVerdict,
    export_verdict,
    find_verdict,
    list_verdicts,
    preset_names,
    render_verdict,
    verdict_points,
    verify_cost,
)
from quantailor.service.work import use_imatrix
from quantailor.service.workspace import Workspace

__all__ = [
    "BuildWish",
    "ConversionOffer",
    "Desk",
    "Draft",
    "JobReport",
    "MeasurementMap",
    "MeasurementWatch",
    "ProjectReport",
    "StoredVerdict",
    "StrategyChoice",
    "Workspace",
    "build_offer",
    "cached_model",
    "cancel_job",
    "check_build",
    "check_built",
    "chosen_strategy",
    "compare_models",
    "compare_strategies",
    "compare_with",
    "configuration_files",
    "configuration_text",
    "conversion_offer",
    "desk_state",
    "drafts_of",
    "edit",
    "disk_plan",
    "downloaded_model",
    "experts",
    "export",
    "export_verdict",
    "find_token",
    "find_verdict",
    "follow_job",
    "forget_draft",
    "hub_cache",
    "inspect",
    "keep_type_list",
    "largest_tensors",
    "list_builds",
    "list_choices",
    "list_drafts",
    "list_folder",
    "list_jobs",
    "list_projects",
    "list_verdicts",
    "llama_quantize_command",
    "measurement_map",
    "model_card",
    "model_metadata",
    "model_overview",
    "open_project",
    "pause_job",
    "peek",
    "plan",
    "plan_rule",
    "predict",
    "preflight",
    "preset_names",
    "preset_types_of",
    "profile_findings",
    "project",
    "remove_job",
    "render_verdict",
    "report",
    "resume_job",
    "role_bands",
    "run_job",
    "save_draft",
    "save_strategy",
    "shipped_imatrix",
    "show_job",
    "start_build",
    "start_detached",
    "strategy_text",
    "study_cost",
    "submit",
    "suggested_file_name",
    "suggested_name",
    "tensor_rows",
    "tensor_types",
    "type_bits",
    "understand",
    "use_imatrix",
    "verdict_points",
    "verify_cost",
    "version",
    "write_card",
]


def type_bits() -> dict[str, float]:
    """Every ggml type with its bits per weight, from most to fewest."""
    return {name: qtype.bits_per_weight for name, qtype in sorted(library.types().items(), key=lambda item: -item[1].bits_per_weight)}


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("quantailor")
